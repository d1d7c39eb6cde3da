"""What only S3 has: parts, and connections that end. The server speaks real HTTP; the wire to it is cut."""

import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import DamagedBlob, S3Store
from jobs.kit.errors import InstallationError, StoreRefused, StoreUnavailable
from tests.integration.artifacts.conftest import PART
from tests.s3_server import S3Server, Wire

CONTENT = hashlib.shake_256(b"weights").digest(2 * PART + 3_000_001)
SHA = hashlib.sha256(CONTENT).hexdigest()
PARTS = 3
FAR = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    directory = tmp_path / "output"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(CONTENT)
    return directory


@pytest.fixture
def uploads(client: Any, bucket: str) -> Callable[[], list[dict[str, Any]]]:
    """The uploads in parts that are not finished."""
    return lambda: list(client.list_multipart_uploads(Bucket=bucket).get("Uploads", ()))


class Killed(BaseException):
    """What a kill looks like from inside."""


def kill_after(parts: int) -> Callable[[int], None]:
    """A callback that dies once so many parts are there."""
    done: list[int] = []

    def on_bytes(more: int) -> None:
        if more:
            done.append(more)
        if len(done) == parts:
            raise Killed

    return on_bytes


def test_a_large_file_goes_in_parts_and_says_what_it_is(
    s3: S3Store, client: Any, bucket: str, output: Path, uploads: Any
) -> None:
    [entry] = s3.put(output)
    head = client.head_object(Bucket=bucket, Key=f"some/place/blobs/{SHA[:2]}/{SHA}")
    assert (head["ContentLength"], head["Metadata"]) == (len(CONTENT), {"sha256": SHA})
    assert head["ETag"].strip('"').endswith(f"-{PARTS}")
    assert entry.sha256 == SHA
    assert b"".join(s3.read(SHA)) == CONTENT
    assert uploads() == []


def test_a_cut_upload_goes_on_where_it_was(s3: S3Store, wire: Wire, output: Path, uploads: Any) -> None:
    wire.reset(may_send=2 * PART + 1_000_000)
    with pytest.raises(StoreUnavailable):
        s3.put(output)
    wire.reset()
    [unfinished] = uploads()
    s3.put(output)
    assert wire.sent < len(CONTENT) - 2 * PART + 100_000, "only the last part is sent again"
    assert b"".join(s3.read(SHA)) == CONTENT
    assert uploads() == [], f"{unfinished['UploadId']} was finished, not left beside a second one"


def test_a_killed_upload_goes_on_where_it_was(s3: S3Store, wire: Wire, output: Path) -> None:
    with pytest.raises(Killed):
        s3.put(output, on_bytes=kill_after(1))
    assert s3.size(SHA) is None, "a blob is whole or not there"
    wire.reset()
    done: list[int] = []
    s3.put(output, on_bytes=done.append)
    assert wire.sent < len(CONTENT) - PART + 100_000
    assert sum(done) == len(CONTENT)
    assert b"".join(s3.read(SHA)) == CONTENT


def test_parts_that_are_not_of_this_content_are_sent_again(s3: S3Store, client: Any, bucket: str, output: Path) -> None:
    target = {"Bucket": bucket, "Key": f"some/place/blobs/{SHA[:2]}/{SHA}"}
    upload = client.create_multipart_upload(**target, Metadata={"sha256": SHA})["UploadId"]
    for number, content in enumerate((b"x" * PART, CONTENT[PART : 2 * PART], b"short", b"one too many"), start=1):
        client.upload_part(**target, UploadId=upload, PartNumber=number, Body=content)
    s3.put(output)
    assert b"".join(s3.read(SHA)) == CONTENT


def test_an_upload_that_somebody_writes_into_is_put_right(
    s3: S3Store, client: Any, bucket: str, output: Path, uploads: Any
) -> None:
    done, spoilt = [0], []

    def spoil(more: int) -> None:
        done[0] += more
        if done[0] == len(CONTENT) and not spoilt:
            [upload] = uploads()
            target = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            spoilt.append(client.upload_part(**target, PartNumber=1, Body=b"x" * PART))

    s3.put(output, on_bytes=spoil)
    assert len(spoilt) == 1
    assert b"".join(s3.read(SHA)) == CONTENT


def test_a_file_that_changes_while_it_is_sent_is_not_stored(s3: S3Store, output: Path) -> None:
    def change(more: int) -> None:
        if more:
            with (output / "model.safetensors").open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(bytes([CONTENT[-1] ^ 1]))

    with pytest.raises(DamagedBlob, match="changed"):
        s3.put(output, on_bytes=change)
    assert s3.size(SHA) is None


def test_a_download_that_ends_early_goes_on_within_one_read(s3: S3Store, wire: Wire, output: Path) -> None:
    s3.put(output)
    wire.reset(may_receive=1_000_000, mends=True)
    assert b"".join(s3.read(SHA, start=5)) == CONTENT[5:]
    assert wire.received < len(CONTENT) + 1_000_000, "what had come is not asked for again"


def test_a_cut_download_goes_on_where_it_was(s3: S3Store, wire: Wire, output: Path, tmp_path: Path) -> None:
    s3.put(output)
    target = tmp_path / "model.safetensors"
    wire.reset(may_receive=8_000_000)
    with pytest.raises(StoreUnavailable):
        s3.fetch(SHA, target)
    assert not target.exists()
    wire.reset()
    done: list[int] = []
    s3.fetch(SHA, target, on_bytes=done.append)
    assert wire.received < len(CONTENT) - 7_000_000
    assert sum(done) == len(CONTENT)
    assert target.read_bytes() == CONTENT


def test_what_comes_is_verified(s3: S3Store, client: Any, bucket: str, tmp_path: Path) -> None:
    client.put_object(Bucket=bucket, Key=f"some/place/blobs/{SHA[:2]}/{SHA}", Body=b"something else")
    with pytest.raises(DamagedBlob):
        s3.fetch(SHA, tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_an_object_of_another_content_is_replaced(s3: S3Store, client: Any, bucket: str, output: Path) -> None:
    client.put_object(Bucket=bucket, Key=f"some/place/blobs/{SHA[:2]}/{SHA}", Body=CONTENT[::-1])
    s3.put(output)
    assert b"".join(s3.read(SHA)) == CONTENT


def test_only_abandoned_uploads_are_discarded(s3: S3Store, output: Path, uploads: Any) -> None:
    with pytest.raises(Killed):
        s3.put(output, on_bytes=kill_after(2))
    assert s3.discard_incomplete(datetime.now(UTC) - timedelta(hours=1)) == 0, "a part came just now"
    assert s3.discard_incomplete(FAR, dry_run=True) == 1
    assert len(uploads()) == 1
    assert s3.discard_incomplete(FAR) == 1
    assert uploads() == []


def test_other_keys_of_the_bucket_are_left_alone(s3: S3Store, client: Any, bucket: str, output: Path) -> None:
    for key in ("mine.txt", "some/place/blobs/readme.txt", f"else/blobs/{SHA[:2]}/{SHA}"):
        client.put_object(Bucket=bucket, Key=key, Body=b"mine")
    client.create_multipart_upload(Bucket=bucket, Key="mine.bin")
    s3.put(output)
    assert [blob.sha256 for blob in s3.blobs()] == [SHA]
    assert s3.discard_incomplete(FAR) == 0
    assert s3.delete(SHA)
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 3, "its own mark went too"


def test_a_store_that_does_not_answer_is_told_from_one_that_refuses(
    s3: S3Store, wire: Wire, client: Any, server: S3Server, output: Path, tmp_path: Path
) -> None:
    elsewhere = S3Store(client, "no-such-bucket")
    for refused in (lambda: elsewhere.put(output), lambda: list(elsewhere.blobs())):
        with pytest.raises(StoreRefused):
            refused()
    wire.reset(may_send=0)
    asked = (
        lambda: s3.size(SHA),
        lambda: s3.read(SHA),
        lambda: s3.fetch(SHA, tmp_path / "target"),
        lambda: s3.put(output),
        lambda: s3.delete(SHA),
        lambda: list(s3.blobs()),
        lambda: s3.discard_incomplete(FAR),
    )
    for ask in asked:
        with pytest.raises(StoreUnavailable) as away:
            ask()
        assert not isinstance(away.value, StoreRefused)
        assert away.value.headers["Retry-After"]
        assert server.url not in away.value.detail


def test_wrong_settings_of_boto3_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InstallationError, match=r"nobody.*AWS_\* variables"):
        S3Store.connect("bucket")
