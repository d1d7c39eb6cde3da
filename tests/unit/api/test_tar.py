"""The streamed archive against Python's own tar reader."""

import io
import tarfile
from functools import partial
from pathlib import Path

import pytest

from api.artifacts.tar import TarMember, tar_chunks, tar_length
from jobs.artifacts import DamagedBlob
from jobs.artifacts.local import read_file


def _members(directory: Path, contents: dict[str, bytes]) -> list[TarMember]:
    members = []
    for index, (name, content) in enumerate(contents.items()):
        path = directory / str(index)
        path.write_bytes(content)
        members.append(TarMember(name, len(content), partial(read_file, path, start=0, length=len(content))))
    return members


@pytest.mark.parametrize(
    "contents",
    [
        {},
        {"checkpoint/empty": b""},
        {"checkpoint/config.json": b"{}", "checkpoint/model.safetensors": bytes(range(256)) * 4000},
        {"checkpoint/" + "long/" * 60 + "name.txt": b"x" * 512, "checkpoint/ünïcode-✓.txt": b"y" * 511},
    ],
    ids=["none", "empty file", "two files", "long and non-ascii names"],
)
def test_python_reads_it_back_and_its_length_was_known(tmp_path: Path, contents: dict[str, bytes]) -> None:
    members = _members(tmp_path, contents)
    archive = b"".join(tar_chunks(members, modified=1_700_000_000))
    assert len(archive) == tar_length(members, modified=1_700_000_000)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        read = {info.name: (tar.extractfile(info) or io.BytesIO()).read() for info in tar}
        assert {info.mtime for info in tar} <= {1_700_000_000}
        assert all(info.isfile() and info.mode == 0o644 for info in tar)
    assert read == contents


def test_no_chunk_is_large(tmp_path: Path) -> None:
    members = _members(tmp_path, {"big": b"z" * 3_000_000})
    assert max(map(len, tar_chunks(members, modified=0))) <= 1 << 18


def test_a_file_that_shrank_breaks_the_stream(tmp_path: Path) -> None:
    members = _members(tmp_path, {"a": b"12345"})
    (tmp_path / "0").write_bytes(b"1234")
    with pytest.raises(DamagedBlob):
        list(tar_chunks(members, modified=0))
