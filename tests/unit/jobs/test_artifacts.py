"""The artifact store hashes what it adopts and never leaves its directories."""

import hashlib
import os
from pathlib import Path

import pytest

from jobs.artifacts import ArtifactStore, UnsafeArtifactError


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def test_adopted_files_are_hashed_in_a_stable_order(store: ArtifactStore) -> None:
    output = store.output_dir("job_1", 3)
    for path, content in {"b.json": b"{}", "checkpoint/model.safetensors": b"x" * 3_000_000, "a.bin": b""}.items():
        (output / path).parent.mkdir(exist_ok=True)
        (output / path).write_bytes(content)
    entries = store.adopt(output)
    assert [entry.path for entry in entries] == ["a.bin", "b.json", "checkpoint/model.safetensors"]
    model = entries[2]
    assert model.sha256 == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert (model.bytes, model.name, model.media_type) == (
        3_000_000,
        "model.safetensors",
        "application/vnd.safetensors",
    )
    assert [entry.media_type for entry in entries[:2]] == ["application/octet-stream", "application/json"]
    assert store.open("job_1", 3, model.path).read_bytes() == b"x" * 3_000_000


@pytest.mark.parametrize("path", ["../4/secret", "../../../etc/passwd", "/etc/passwd", "", ".", "link/secret"])
def test_no_path_leaves_the_attempts_directory(store: ArtifactStore, path: str) -> None:
    other = store.output_dir("job_1", 4)
    (other / "secret").write_text("s")
    mine = store.output_dir("job_1", 3)
    (mine / "link").symlink_to(other)
    with pytest.raises(UnsafeArtifactError):
        store.open("job_1", 3, path)


@pytest.mark.parametrize("job_id", ["", "..", "job/1", "job_1/../job_2", "JOB", "job\x00"])
def test_only_ids_of_ours_name_directories(store: ArtifactStore, job_id: str) -> None:
    with pytest.raises(UnsafeArtifactError):
        store.output_dir(job_id, 1)
    with pytest.raises(UnsafeArtifactError):
        store.delete(job_id)


def test_links_and_pipes_are_not_adopted(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    linked = store.output_dir("job_1", 1)
    (linked / "model.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeArtifactError, match="link"):
        store.adopt(linked)
    piped = store.output_dir("job_1", 2)
    os.mkfifo(piped / "pipe")
    with pytest.raises(UnsafeArtifactError, match="neither"):
        store.adopt(piped)


def test_a_name_that_can_not_be_printed_is_not_adopted(store: ArtifactStore) -> None:
    output = store.output_dir("job_1", 1)
    (output / "a\nb").write_text("")
    with pytest.raises(UnsafeArtifactError, match="printed"):
        store.adopt(output)


def test_a_missing_file_is_told_from_an_unsafe_one(store: ArtifactStore) -> None:
    store.output_dir("job_1", 1)
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
        store.open("job_1", 1, "gone.txt")


def test_deleting_takes_every_attempt_and_keeping_takes_the_others(store: ArtifactStore) -> None:
    for fence in (1, 2, 3):
        (store.output_dir("job_1", fence) / "f").write_text("x")
    kept = store.output_dir("job_2", 1)
    store.keep_only("job_1", 2)
    assert [path.name for path in (store.root / "job_1").iterdir()] == ["2"]
    store.delete("job_1")
    store.delete("job_1")
    assert not (store.root / "job_1").exists()
    assert kept.is_dir()
