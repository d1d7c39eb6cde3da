"""Parsing ``QUANTRY_ARTIFACTS_URL``, the place of published files. It imports no store, so that settings stay light."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX: Final = re.compile(r"[A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*")
_MAX_PREFIX: Final = 512
_EXPECTED: Final = "QUANTRY_ARTIFACTS_URL must be s3://bucket, s3://bucket/prefix or file:///absolute/path"

Scheme = Literal["file", "s3"]


@dataclass(frozen=True, kw_only=True)
class ArtifactLocation:
    """A parsed URL. ``directory`` is for ``file``; ``bucket`` and ``prefix`` (without outer slashes) are for ``s3``."""

    scheme: Scheme
    directory: Path | None = None
    bucket: str = ""
    prefix: str = ""


def artifact_location(url: str) -> ArtifactLocation:
    """Parse the URL. Raises: ValueError: a wrong scheme or part; the message never repeats it, as it may have a key."""
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ValueError(f"{_EXPECTED}; it takes no '?' and no '#'. The region and the keys are AWS_* variables.")
    if parts.scheme == "file":
        return _of_file(parts.netloc, unquote(parts.path))
    if parts.scheme == "s3":
        return _of_s3(parts.netloc, parts.path.strip("/"))
    raise ValueError(f"{_EXPECTED}; leave it unset for the data directory.")


def _of_file(host: str, path: str) -> ArtifactLocation:
    if host not in {"", "localhost"} or not path.startswith("/") or "\x00" in path or path.strip("/") == "":
        raise ValueError(f"{_EXPECTED}; a file URL has three slashes and names a directory.")
    return ArtifactLocation(scheme="file", directory=Path(path))


def _of_s3(bucket: str, prefix: str) -> ArtifactLocation:
    if "@" in bucket or ":" in bucket:
        raise ValueError(
            f"{_EXPECTED}; it takes no keys and no ports. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "and QUANTRY_S3_ENDPOINT_URL for a server of your own."
        )
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"{_EXPECTED}; a bucket's name has 3 to 63 of a-z, 0-9, '.' and '-'.")
    if prefix and (len(prefix) > _MAX_PREFIX or not _PREFIX.fullmatch(prefix) or {".", ".."} & set(prefix.split("/"))):
        raise ValueError(
            f"{_EXPECTED}; a prefix has up to {_MAX_PREFIX} letters, digits and !_.*'()-, separated by '/'."
        )
    return ArtifactLocation(scheme="s3", bucket=bucket, prefix=prefix)
