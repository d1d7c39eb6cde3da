"""Blobs in an S3-compatible store: ``<prefix>/blobs/<2 hex>/<sha256>``.

The time of an object can not be renewed without writing the object again. So a ``put`` of existing content writes an
empty mark ``<prefix>/touched/<sha256>``. S3 also has no lock. So ``delete`` checks the times of blob and mark just
before it deletes, and ``put`` checks at its end that every blob that it did not write itself is still there.

The service needs s3:GetObject, PutObject, DeleteObject, ListBucket, ListBucketMultipartUploads, AbortMultipartUpload
and ListMultipartUploadParts. Without ListBucket a store answers 403 for a missing object.
"""

import hashlib
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import ClientError

from jobs.artifacts.manifest import CHUNK_BYTES, ManifestEntry, OnBytes, ignore_bytes, manifest_of
from jobs.artifacts.s3_client import CUT, asking, error_code, is_missing, s3_client
from jobs.artifacts.s3_upload import Overtaken, Upload
from jobs.artifacts.store import READ_BYTES, Blob, DamagedBlob, require_sha256
from jobs.kit.errors import StoreUnavailable

_ATTEMPTS: Final = 4
# How often a blob is sent if it is gone again after it was sent.
_SENDS: Final = 3
_READS_WITHOUT_A_BYTE: Final = 3
_SHA256_LENGTH: Final = 64


class S3Store:
    """An :class:`jobs.artifacts.ArtifactStore` below ``prefix`` of one bucket. Threads may share it."""

    def __init__(self, client: Any, bucket: str, *, prefix: str = "", part_bytes: int = 16 << 20) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._part_bytes = part_bytes

    @classmethod
    def connect(
        cls,
        bucket: str,
        *,
        prefix: str = "",
        endpoint_url: str | None = None,
        part_bytes: int = 16 << 20,
        attempts: int = _ATTEMPTS,
    ) -> "S3Store":
        """Connect, with boto3's own settings as well, without a request to the store. Raises: InstallationError."""
        client = s3_client(endpoint_url=endpoint_url, attempts=attempts)
        return cls(client, bucket, prefix=prefix, part_bytes=part_bytes)

    def put(self, directory: Path, *, on_bytes: OnBytes | None = None) -> tuple[ManifestEntry, ...]:
        """Store every file. Parts that arrived earlier are not sent again; see the protocol."""
        report_bytes = on_bytes or ignore_bytes
        entries, found = [], []
        with asking():
            for path, entry in manifest_of(directory, report_bytes):
                entries.append(entry)
                if self._refresh(entry):
                    found.append((path, entry))
                    report_bytes(entry.bytes)
                else:
                    self._send(path, entry, report_bytes)
            # A collection may have read the old time before the mark was written, so these blobs are checked again.
            for path, entry in found:
                if not self._holds(entry):
                    # The bytes of this file were reported above already.
                    self._send(path, entry, lambda _: report_bytes(0))
        return tuple(entries)

    def size(self, sha256: str) -> int | None:
        """Return the size of a blob in bytes; None when there is none."""
        with asking():
            head = self._head(self._key(sha256))
        return None if head is None else int(head["ContentLength"])

    def read(self, sha256: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a part of a blob in chunks. After a lost connection it continues at that byte. See the protocol."""
        size = self.size(sha256)
        if size is None:
            raise FileNotFoundError("there is no such blob")
        # A start after the end gives no bytes; it is no error.
        stop = max(size, start) if length is None else start + length
        if stop > size and stop > start:
            raise DamagedBlob("a published file is shorter than its manifest says")
        chunks = self._chunks(self._key(sha256), start, stop)
        return chain((next(chunks, b""),), chunks)

    def fetch(self, sha256: str, target: Path, *, on_bytes: OnBytes | None = None) -> None:
        """Write the blob to ``target``. Unfinished bytes are stored beside it in ``<target>.part``."""
        report_bytes = on_bytes or ignore_bytes
        size = self.size(sha256)
        if size is None:
            raise FileNotFoundError("there is no such blob")
        part = target.with_name(f"{target.name}.part")
        digest, done = hashlib.sha256(), 0
        with part.open("a+b") as file:
            # The bytes of an earlier call are hashed again: the digest is of the whole content.
            file.seek(0)
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                report_bytes(len(chunk))
            for chunk in self.read(sha256, start=done, length=max(size - done, 0)):
                file.write(chunk)
                digest.update(chunk)
                report_bytes(len(chunk))
        if digest.hexdigest() != sha256:
            part.unlink()
            raise DamagedBlob("the received content of a blob does not match its name; the next request starts again")
        part.replace(target)

    def delete(self, sha256: str, *, unless_since: datetime | None = None) -> bool:
        """Remove a blob, unless it or its mark was written at or after ``unless_since``."""
        key, mark = self._key(sha256), self._mark(sha256)
        with asking():
            heads = self._head(key), self._head(mark)
            moments = [head["LastModified"] for head in heads if head is not None]
            if unless_since is not None and any(moment >= unless_since for moment in moments):
                return False
            # The mark goes first: a mark without a blob would never be found by ``blobs``.
            for each, head in zip((mark, key), reversed(heads), strict=True):
                if head is not None:
                    self._client.delete_object(Bucket=self._bucket, Key=each)
        return heads[0] is not None

    def blobs(self) -> Iterator[Blob]:
        """Yield every blob, by ascending ``sha256``."""
        pages = iter(self._client.get_paginator("list_objects_v2").paginate(**self._below))
        while True:
            with asking():
                page = next(pages, None)
            if page is None:
                return
            for entry in page.get("Contents", ()):
                name = entry["Key"].rpartition("/")[2]
                if len(name) == _SHA256_LENGTH:
                    yield Blob(name, entry["Size"], entry["LastModified"])

    def discard_incomplete(self, before: datetime, *, dry_run: bool = False) -> int:
        """Abort multipart uploads whose latest part arrived before ``before``, and return their number."""
        found = 0
        with asking():
            for page in self._client.get_paginator("list_multipart_uploads").paginate(**self._below):
                for upload in page.get("Uploads", ()):
                    target = {"Bucket": self._bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                    if self._last_sign(target, upload["Initiated"]) < before:
                        found += 1
                        if not dry_run:
                            self._client.abort_multipart_upload(**target)
        return found

    def _send(self, path: Path, entry: ManifestEntry, report_bytes: OnBytes) -> None:
        upload = Upload(
            client=self._client,
            bucket=self._bucket,
            key=self._key(entry.sha256),
            path=path,
            entry=entry,
            part_bytes=self._part_bytes,
            on_bytes=report_bytes,
        )
        for _ in range(_SENDS):
            with suppress(Overtaken):
                upload.send()
            # Another process may have finished the same upload, which is as good.
            if self._holds(entry):
                return
        raise StoreUnavailable("The artifact store loses files that it is sent. Repeat the request in a few seconds.")

    def _refresh(self, entry: ManifestEntry) -> bool:
        """Renew the time of an existing blob by its mark. False: the blob must be sent."""
        if not self._holds(entry):
            return False
        self._client.put_object(Bucket=self._bucket, Key=self._mark(entry.sha256), Body=b"")
        return True

    def _holds(self, entry: ManifestEntry) -> bool:
        """Return whether the object exists with this size, and its metadata has this digest."""
        head = self._head(self._key(entry.sha256))
        if head is None:
            return False
        said = head.get("Metadata", {}).get("sha256")
        return (int(head["ContentLength"]), said) == (entry.bytes, entry.sha256)

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            head: dict[str, Any] = self._client.head_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if is_missing(error):
                return None
            raise
        return head

    def _chunks(self, key: str, position: int, stop: int) -> Iterator[bytes]:
        """Yield bytes of an object. After a lost connection it asks for the rest, while each request brings bytes."""
        futile = 0
        while position < stop:
            began = position
            try:
                with closing(self._body(key, position, stop)) as body:
                    while chunk := body.read(READ_BYTES):
                        position += len(chunk)
                        yield chunk
            except CUT as error:
                futile = futile + 1 if position == began else 0
                if futile == _READS_WITHOUT_A_BYTE:
                    raise StoreUnavailable from error
            else:
                if position < stop:
                    # The body ended without an error before its announced end.
                    raise DamagedBlob("a published file is shorter than its manifest says")

    def _body(self, key: str, position: int, stop: int) -> Any:
        with asking():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key, Range=f"bytes={position}-{stop - 1}")
            except ClientError as error:
                if is_missing(error):
                    raise FileNotFoundError("there is no such blob") from error
                raise
        # A store that ignores Range would return the whole object.
        if int(answer["ContentLength"]) != stop - position:
            answer["Body"].close()
            raise DamagedBlob("the artifact store returned another part of a file than the requested one")
        return answer["Body"]

    def _last_sign(self, target: dict[str, str], initiated: datetime) -> datetime:
        """Return when the upload began or its latest part arrived. An upload that just ended counts as new."""
        pages = self._client.get_paginator("list_parts").paginate(**target)
        try:
            moments = [part["LastModified"] for page in pages for part in page.get("Parts", ())]
        except ClientError as error:
            if error_code(error) == "NoSuchUpload":
                return datetime.max.replace(tzinfo=UTC)
            raise
        latest: datetime = max([initiated, *moments])
        return latest

    def _key(self, sha256: str) -> str:
        return f"{self._prefix}blobs/{require_sha256(sha256)[:2]}/{sha256}"

    def _mark(self, sha256: str) -> str:
        return f"{self._prefix}touched/{require_sha256(sha256)}"

    @property
    def _below(self) -> dict[str, str]:
        return {"Bucket": self._bucket, "Prefix": f"{self._prefix}blobs/"}
