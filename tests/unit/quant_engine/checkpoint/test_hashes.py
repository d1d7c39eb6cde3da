"""A checkpoint's files by their content."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from quant_engine.checkpoint.hashes import changed_files, checkpoint_manifest, recorded_manifest
from quant_engine.errors import InvalidModel


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    (directory / "templates").mkdir(parents=True)
    for name, content in (("b.bin", b"two"), ("a.bin", b"one"), ("templates/c", b""), ("README.md", b"card")):
        (directory / name).write_bytes(content)
    files = checkpoint_manifest(directory, without=("README.md",)).files
    _write_card_data(directory, [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in files])
    return directory


def _write_card_data(directory: Path, files: Any) -> None:
    (directory / "quantry.json").write_text(json.dumps({"files": files}))


def test_a_manifest_holds_every_file_in_order(checkpoint: Path) -> None:
    files = checkpoint_manifest(checkpoint).files
    assert [file.path for file in files] == ["README.md", "a.bin", "b.bin", "quantry.json", "templates/c"]
    assert (files[1].bytes, files[1].sha256) == (3, hashlib.sha256(b"one").hexdigest())


def test_the_digest_is_the_content_s_and_not_the_place_s(checkpoint: Path, tmp_path: Path) -> None:
    digest = checkpoint_manifest(checkpoint).digest
    moved = checkpoint.rename(tmp_path / "elsewhere")
    assert checkpoint_manifest(moved).digest == digest
    (moved / "a.bin").rename(moved / "d.bin")
    renamed = checkpoint_manifest(moved).digest
    (moved / "d.bin").rename(moved / "a.bin")
    (moved / "a.bin").write_bytes(b"One")
    assert len({digest, renamed, checkpoint_manifest(moved).digest}) == 3
    assert digest.startswith("sha256:")
    assert len(digest) == len("sha256:") + 64


def test_the_card_data_lists_all_but_itself_and_the_card(checkpoint: Path) -> None:
    assert recorded_manifest(checkpoint) == checkpoint_manifest(checkpoint, without=("README.md", "quantry.json"))


def test_what_was_changed_added_or_taken_is_named(checkpoint: Path) -> None:
    assert changed_files(checkpoint) == []
    (checkpoint / "a.bin").write_bytes(b"ONE")
    (checkpoint / "b.bin").unlink()
    (checkpoint / "new").touch()
    assert changed_files(checkpoint) == ["a.bin", "b.bin", "new"]


@pytest.mark.parametrize("files", [None, [{}], [{"path": 1, "bytes": 1, "sha256": "x"}], "abc", {"path": "x"}])
def test_card_data_of_another_shape_is_refused(files: Any, checkpoint: Path) -> None:
    _write_card_data(checkpoint, files)
    with pytest.raises(InvalidModel, match=r"no usable quantry\.json"):
        recorded_manifest(checkpoint)


def test_without_card_data_or_a_directory_there_is_an_error(checkpoint: Path) -> None:
    (checkpoint / "quantry.json").unlink()
    with pytest.raises(InvalidModel):
        changed_files(checkpoint)
    with pytest.raises(FileNotFoundError):
        checkpoint_manifest(checkpoint / "nowhere")
