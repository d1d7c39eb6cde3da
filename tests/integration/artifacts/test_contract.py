"""What every artifact store promises."""

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.artifacts import ArtifactStore, DamagedBlob, ManifestEntry, UnsafeArtifactError
from jobs.kit.errors import StoreUnavailable

BIG = bytes(range(256)) * 4000
FILES = {"b.json": b"{}", "checkpoint/config.json": b"{}", "checkpoint/model.safetensors": BIG, "a.bin": b""}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return write(tmp_path / "output", FILES)


def write(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def whole(chunks: Iterator[bytes]) -> bytes:
    return b"".join(chunks)


def test_every_file_is_described_in_a_stable_order_and_read_back(store: ArtifactStore, output: Path) -> None:
    entries = store.put(output)
    assert [entry.path for entry in entries] == sorted(FILES)
    assert entries == tuple(
        ManifestEntry(path=name, bytes=len(FILES[name]), sha256=sha(FILES[name]), media_type=kind)
        for name, kind in zip(
            sorted(FILES),
            ["application/octet-stream", "application/json", "application/json", "application/vnd.safetensors"],
            strict=True,
        )
    )
    for entry in entries:
        assert store.size(entry.sha256) == entry.bytes
        assert whole(store.read(entry.sha256)) == FILES[entry.path]
    assert output.is_dir(), "the caller's files are the caller's to remove"


def test_equal_files_are_stored_once_whoever_puts_them(store: ArtifactStore, output: Path, tmp_path: Path) -> None:
    store.put(output)
    store.put(write(tmp_path / "another", {"deep/er/model.safetensors": BIG, "new.txt": b"new"}))
    stored = list(store.blobs())
    assert [blob.sha256 for blob in stored] == sorted({sha(content) for content in (*FILES.values(), b"new")})
    assert sum(blob.bytes for blob in stored) == len(BIG) + len(b"{}") + len(b"new")
    assert all(abs(datetime.now(UTC) - blob.modified) < timedelta(minutes=5) for blob in stored)


@pytest.mark.parametrize(
    ("start", "length"), [(0, 10), (1_023_990, 10), (1_023_990, None), (0, None), (5, 0), (1_024_000, 0), (7, 700_000)]
)
def test_parts(store: ArtifactStore, output: Path, start: int, length: int | None) -> None:
    store.put(output)
    chunks = list(store.read(sha(BIG), start=start, length=length))
    assert b"".join(chunks) == BIG[start : None if length is None else start + length]
    assert max(map(len, chunks), default=0) <= 1 << 18


def test_what_is_not_there_is_known_before_the_first_chunk(store: ArtifactStore, tmp_path: Path) -> None:
    gone = sha(b"never put")
    assert store.size(gone) is None
    for length in (None, 0, 5):
        with pytest.raises(FileNotFoundError):
            store.read(gone, length=length)
    with pytest.raises(FileNotFoundError):
        store.fetch(gone, tmp_path / "target")
    assert not store.delete(gone)
    assert list(store.blobs()) == []
    assert not (tmp_path / "target").exists()


def test_more_than_there_is_breaks(store: ArtifactStore, output: Path) -> None:
    store.put(output)
    with pytest.raises(DamagedBlob):
        whole(store.read(sha(BIG), start=10, length=len(BIG)))


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 63 + "\n"])
def test_nothing_but_a_digest_names_a_blob(store: ArtifactStore, name: str, tmp_path: Path) -> None:
    for ask in (store.size, store.read, store.delete, lambda each: store.fetch(each, tmp_path / "target")):
        with pytest.raises(ValueError, match="64 lower-case"):
            ask(name)


def test_a_blob_becomes_a_file(store: ArtifactStore, output: Path, tmp_path: Path) -> None:
    store.put(output)
    done: list[int] = []
    target = tmp_path / "fetched.safetensors"
    for _ in range(2):  # a target that is there is replaced
        store.fetch(sha(BIG), target, on_bytes=done.append)
        assert target.read_bytes() == BIG
    assert sum(done) == 2 * len(BIG)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("fetched")] == [target.name]
    store.fetch(sha(b""), target)
    assert target.read_bytes() == b""


def test_links_pipes_and_unprintable_names_are_refused(store: ArtifactStore, tmp_path: Path) -> None:
    secret = write(tmp_path / "secrets", {"secret": b"s"})
    linked = write(tmp_path / "linked", {"a.txt": b"a"})
    (linked / "model.safetensors").symlink_to(secret / "secret")
    directory = write(tmp_path / "directory", {"a.txt": b"a"})
    (directory / "link").symlink_to(secret)
    piped = write(tmp_path / "piped", {"a.txt": b"a"})
    os.mkfifo(piped / "pipe")
    named = write(tmp_path / "named", {"a\nb/c.txt": b"a"})
    for path, why in ((linked, "link"), (directory, "link"), (piped, "neither"), (named, "printed")):
        with pytest.raises(UnsafeArtifactError, match=why):
            store.put(path)
    assert list(store.blobs()) == [], "nothing of a directory is stored before all of it was looked at"


class Enough(Exception):
    """Ends a put from its callback."""


def test_progress_adds_up_and_a_callback_can_stop_it(store: ArtifactStore, output: Path) -> None:
    done: list[int] = []

    def stop(more: int) -> None:
        done.append(more)
        if sum(done):
            raise Enough

    with pytest.raises(Enough):
        store.put(output, on_bytes=stop)
    done.clear()
    entries = store.put(output, on_bytes=done.append)
    assert sum(done) == sum(entry.bytes for entry in entries)
    done.clear()
    assert store.put(output, on_bytes=done.append) == entries
    assert sum(done) == sum(entry.bytes for entry in entries), "what is there already counts as done"


def test_many_may_put_the_same_at_once(store: ArtifactStore, tmp_path: Path) -> None:
    outputs = [write(tmp_path / str(index), FILES) for index in range(4)]

    def put(output: Path) -> tuple[ManifestEntry, ...]:
        for _ in range(20):  # the server of these tests answers 500 when one key is written twice at once
            with suppress(StoreUnavailable):
                return store.put(output)
        raise AssertionError("never put")

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(put, outputs))) == 1
    assert len(list(store.blobs())) == 3
    assert whole(store.read(sha(BIG))) == BIG


def test_only_an_old_blob_is_deleted_and_a_put_makes_it_young(store: ArtifactStore, output: Path) -> None:
    store.put(output)
    time.sleep(1.1)  # S3 tells times in whole seconds
    since = datetime.now(UTC).replace(microsecond=0)
    store.put(output)
    assert not store.delete(sha(BIG), unless_since=since)
    assert whole(store.read(sha(BIG))) == BIG
    assert store.delete(sha(BIG), unless_since=datetime.now(UTC) + timedelta(minutes=1))
    assert store.size(sha(BIG)) is None
    store.put(output)
    assert store.delete(sha(BIG))
    assert store.put(output)
    assert whole(store.read(sha(BIG))) == BIG
