"""Opening the store that the settings name. A new kind of store is one more entry of ``_STORES``."""

from collections.abc import Callable
from typing import Final

from jobs.artifacts.local import LocalStore
from jobs.artifacts.s3 import S3Store
from jobs.artifacts.store import ArtifactStore
from jobs.settings import Settings
from jobs.settings.artifact_location import Scheme


def open_store(settings: Settings) -> ArtifactStore:
    """Return the store that ``settings.artifacts_url`` names, without a request to it. Call it after a fork."""
    return _STORES[settings.artifacts_location.scheme](settings)


def _local(settings: Settings) -> ArtifactStore:
    return LocalStore(settings.artifacts_location.directory or settings.artifacts_dir)


def _s3(settings: Settings) -> ArtifactStore:
    location = settings.artifacts_location
    return S3Store.connect(
        location.bucket,
        prefix=location.prefix,
        endpoint_url=settings.s3_endpoint_url,
        part_bytes=settings.s3_part_bytes,
    )


_STORES: Final[dict[Scheme, Callable[[Settings], ArtifactStore]]] = {"file": _local, "s3": _s3}
