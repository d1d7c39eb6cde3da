"""Sending one file to S3: a small file in one request, a larger one in parts, which a later call can continue.

The key names the content, so an unfinished upload of this key has the same bytes, in every process. A part counts as
sent when its size and MD5 match the file's bytes. Where the store shows no MD5 (SSE-KMS), parts are sent again.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import ClientError

from jobs.artifacts.manifest import ManifestEntry, OnBytes
from jobs.artifacts.s3_client import error_code
from jobs.artifacts.store import DamagedBlob

# The limit of S3 for one upload.
MAX_PARTS: Final = 10_000
_MEBIBYTE: Final = 1 << 20
# What S3 answers when another process has finished or aborted the upload.
_OVERTAKEN: Final = frozenset({"NoSuchUpload", "InvalidPart", "InvalidPartOrder"})


class Overtaken(Exception):
    """Another process finished or aborted the upload meanwhile. Check again whether the object exists."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """The upload of one file to one key. ``part_bytes`` is raised where the file would have too many parts for S3."""

    client: Any
    bucket: str
    key: str
    path: Path
    entry: ManifestEntry
    part_bytes: int
    on_bytes: OnBytes

    def send(self) -> None:
        """Send the file. Raises: Overtaken, DamagedBlob (the file changed), OSError, and botocore's errors."""
        if self.entry.bytes <= self.part_bytes:
            self._send_at_once()
            return
        try:
            self._send_parts()
        except ClientError as error:
            if error_code(error) in _OVERTAKEN:
                raise Overtaken from error
            raise

    def _send_at_once(self) -> None:
        content = self.path.read_bytes()
        # The file may have changed since its digest was computed.
        self._check(hashlib.sha256(content).hexdigest())
        self.client.put_object(**self._target, Body=content, ContentMD5=_base64(_md5(content)), **self._described)
        self.on_bytes(len(content))

    def _send_parts(self) -> None:
        upload_id = self._unfinished() or self._begin()
        sent = self._sent_parts(upload_id)
        # Every call must cut the file at the same places, else earlier parts would not match.
        size = max(self.part_bytes, _round_up(-(-self.entry.bytes // MAX_PARTS), _MEBIBYTE))
        digest, parts = hashlib.sha256(), []
        with self.path.open("rb") as file:
            for number in range(1, -(-self.entry.bytes // size) + 1):
                content = file.read(size)
                digest.update(content)
                parts.append({"PartNumber": number, "ETag": self._part(upload_id, number, content, sent)})
                self.on_bytes(len(content))
        # Before the upload is completed: a changed file must not become an object under this digest.
        self._check(digest.hexdigest())
        self.client.complete_multipart_upload(**self._target, UploadId=upload_id, MultipartUpload={"Parts": parts})

    def _part(self, upload_id: str, number: int, content: bytes, sent: Mapping[int, tuple[int, str]]) -> str:
        """Send one part if it is not there yet, and return its ETag as S3 wrote it."""
        digest = _md5(content)
        size, etag = sent.get(number, (-1, ""))
        if (size, etag.strip('"')) == (len(content), digest.hex()):
            return etag
        answer = self.client.upload_part(
            **self._target, UploadId=upload_id, PartNumber=number, Body=content, ContentMD5=_base64(digest)
        )
        return str(answer["ETag"])

    def _unfinished(self) -> str | None:
        """Return the id of the latest unfinished upload to this key."""
        answer = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.key)
        # The prefix also matches longer keys.
        found = [upload for upload in answer.get("Uploads", ()) if upload["Key"] == self.key]
        latest = max(found, key=lambda upload: upload["Initiated"], default=None)
        return None if latest is None else str(latest["UploadId"])

    def _begin(self) -> str:
        return str(self.client.create_multipart_upload(**self._target, **self._described)["UploadId"])

    def _sent_parts(self, upload_id: str) -> dict[int, tuple[int, str]]:
        """Return (size, ETag) of every part that arrived, by part number."""
        pages = self.client.get_paginator("list_parts").paginate(**self._target, UploadId=upload_id)
        return {part["PartNumber"]: (part["Size"], part["ETag"]) for page in pages for part in page.get("Parts", ())}

    @property
    def _target(self) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.key}

    @property
    def _described(self) -> dict[str, Any]:
        return {"Metadata": {"sha256": self.entry.sha256}, "ContentType": "application/octet-stream"}

    def _check(self, sha256: str) -> None:
        if sha256 != self.entry.sha256:
            raise DamagedBlob(f"{self.entry.name!r} changed while it was stored")


def _md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
