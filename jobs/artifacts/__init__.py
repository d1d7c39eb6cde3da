"""The artifact store: published files named by their content, on a local disk or in an S3-compatible store."""

from jobs.artifacts.legacy import LegacyFiles
from jobs.artifacts.local import LocalStore
from jobs.artifacts.manifest import ManifestEntry, OnBytes, UnsafeArtifactError, total_bytes
from jobs.artifacts.opening import open_store
from jobs.artifacts.s3 import S3Store
from jobs.artifacts.store import ArtifactStore, Blob, DamagedBlob

__all__ = [
    "ArtifactStore",
    "Blob",
    "DamagedBlob",
    "LegacyFiles",
    "LocalStore",
    "ManifestEntry",
    "OnBytes",
    "S3Store",
    "UnsafeArtifactError",
    "open_store",
    "total_bytes",
]
