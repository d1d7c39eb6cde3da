"""The connection to an S3-compatible store, and the meaning of its errors for the service.

Keys, region, profile, proxies and certificates come from boto3's own environment variables and files:
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_DEFAULT_REGION, AWS_PROFILE, AWS_CA_BUNDLE, a role, …
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError

from jobs.kit.errors import InstallationError, StoreRefused, StoreUnavailable

CUT: Final = (HTTPClientError, IncompleteReadError)
"""Errors of a connection that ended early or was never made."""

_CONNECT_SECONDS: Final = 3
_READ_SECONDS: Final = 20
_CONNECTIONS: Final = 32
_OWN_ENDPOINT: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_TRY_LATER: Final = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "OperationAborted"})


def s3_client(*, endpoint_url: str | None, attempts: int) -> Any:
    """Return a client that tries each request ``attempts`` times, in botocore's standard mode. Threads may share it.

    Raises:
        InstallationError: boto3's own settings are wrong, such as a profile that does not exist.
    """
    own_endpoint = endpoint_url is not None or any(os.environ.get(name) for name in _OWN_ENDPOINT)
    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=_CONNECTIONS,
        tcp_keepalive=True,
        # A self-hosted server rarely has a DNS name for each bucket.
        s3={"addressing_style": "path" if own_endpoint else "auto"},
        # Many compatible stores lack the newer checksums. Parts have their MD5, and blobs are named by SHA-256.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=config)
    except (BotoCoreError, ValueError) as error:
        raise InstallationError(
            f"The S3 store can not be used: {error} Look at QUANTRY_S3_ENDPOINT_URL and the AWS_* variables."
        ) from error


@contextmanager
def asking() -> Iterator[None]:
    """Convert botocore's errors of every request. Raises: StoreUnavailable, StoreRefused."""
    try:
        yield
    except ClientError as error:
        if _status(error) >= 500 or _status(error) in {408, 429} or error_code(error) in _TRY_LATER:
            raise StoreUnavailable from error
        raise StoreRefused from error
    except CUT as error:
        raise StoreUnavailable from error
    except BotoCoreError as error:  # such as NoCredentialsError
        raise StoreRefused from error


def error_code(error: ClientError) -> str:
    """Return S3's name of an error. A HEAD response has no body, so for it this is the status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_missing(error: ClientError) -> bool:
    """Return whether the error means that the object does not exist."""
    return error_code(error) in {"404", "NoSuchKey", "NotFound"}


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
