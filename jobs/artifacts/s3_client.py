"""The connection to an S3-compatible store, and what its errors mean to the service.

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
"""The connection ended, or never began."""

_CONNECT_SECONDS: Final = 3
_READ_SECONDS: Final = 20
_CONNECTIONS: Final = 32
_OWN_ENDPOINT: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_TRY_LATER: Final = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "OperationAborted"})


def s3_client(*, endpoint_url: str | None, attempts: int) -> Any:
    """A client whose requests are tried ``attempts`` times in botocore's standard mode. Threads may share it.

    Raises:
        InstallationError: boto3's own settings are wrong, such as a profile that is not there.
    """
    own_endpoint = endpoint_url is not None or any(os.environ.get(name) for name in _OWN_ENDPOINT)
    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=_CONNECTIONS,
        tcp_keepalive=True,
        # A server of one's own seldom has a name for every bucket.
        s3={"addressing_style": "path" if own_endpoint else "auto"},
        # Many compatible stores do not know the newer checksums; parts carry their MD5, and blobs are named by SHA-256.
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
    """Around every request. Raises: StoreUnavailable, StoreRefused in place of botocore's errors."""
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
    """S3's name of an error; of a HEAD, which has no body, its status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_missing(error: ClientError) -> bool:
    """Whether the error says that there is no such object."""
    return error_code(error) in {"404", "NoSuchKey", "NotFound"}


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
