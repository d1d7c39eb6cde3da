"""Every setting of the service, read once from ``QUANTRY_*`` environment variables.

Packages take a ``Settings``, or the one value that they need, as an argument. They read no global variable.
"""

import ipaddress
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobs.settings.artifact_location import ArtifactLocation, artifact_location
from jobs.settings.directories import parse_directories
from jobs.settings.hosts import parse_hosts, parse_origins
from jobs.settings.networks import Network, parse_networks
from jobs.settings.problems import with_variables

SINGLE_TENANT = "default"


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _kept_if(parse: Callable[[str], object]) -> AfterValidator:
    """Return a validator that keeps a text as it is, if ``parse`` accepts it."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


Directory = Annotated[Path, AfterValidator(_absolute)]
Retention = Annotated[float, Field(ge=0, le=100 * 366 * 86_400)]  # 0: never deleted
HttpUrl = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.\[\]:_-]+(/[A-Za-z0-9._/-]*)?$", max_length=1000)]


class Settings(BaseSettings):
    """The operator's settings. Times are in seconds, sizes in bytes; directories become absolute.

    Raises:
        pydantic.ValidationError: a value is out of range, the lease is too short for its heartbeat, or the service
            would listen on the network with neither an API key nor an explicit ``allow_anonymous``.
    """

    # Some settings are secrets, so errors must not repeat the input.
    model_config = SettingsConfigDict(env_prefix="QUANTRY_", frozen=True, extra="ignore", hide_input_in_errors=True)

    host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    data_dir: Directory = Field(default=Path("var"), validate_default=True)
    models_dir: Directory = Field(default_factory=lambda chosen: chosen["data_dir"] / "models")
    # Directories into which a model's links may lead, such as /mnt/weights,/srv/hub-cache.
    model_link_dirs: Annotated[str, _kept_if(parse_directories)] = ""
    datasets_dir: Directory | None = None
    # None: a folder of datasets_dir (wikitext2, or the first by name), or pydoc where there is none.
    default_dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    device: Literal["cpu", "auto"] = "cpu"

    database_url: SecretStr | None = None
    broker_url: SecretStr | None = None

    artifacts_url: Annotated[str, _kept_if(artifact_location)] | None = None  # file:///path or s3://bucket/prefix
    s3_endpoint_url: HttpUrl | None = None  # in addition to boto3's own AWS_* variables
    # S3 takes parts of 5 MiB to 5 GiB.
    s3_part_bytes: Annotated[int, Field(ge=5 << 20, le=5 << 30)] = 16 << 20
    gc_grace_seconds: Annotated[float, Field(ge=60, le=366 * 86_400)] = 86_400.0  # stored files that no job uses

    # How long things are stored before they are deleted, counted from the end of a job or the last change of a file.
    retention_artifacts_seconds: Retention = 0.0  # files of a finished job
    retention_events_seconds: Retention = 0.0  # all events of a finished job except the last
    retention_jobs_seconds: Retention = 0.0  # a finished job with everything that belongs to it
    retention_downloads_seconds: Retention = 7 * 86_400.0  # an interrupted download of a model
    idempotency_seconds: Annotated[float, Field(ge=60, le=366 * 86_400)] = 86_400.0  # the answer to an Idempotency-Key

    api_key: SecretStr | None = None
    allow_anonymous: bool = False
    # Names that a request's Host header may have besides loopback names and QUANTRY_HOST.
    allowed_hosts: Annotated[str, _kept_if(parse_hosts)] = ""
    # Origins of web pages elsewhere that may use this API.
    allowed_origins: Annotated[str, _kept_if(parse_origins)] = ""
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 8 << 20  # of a request that may carry text
    body_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0  # time for a whole body to arrive

    secret_key: SecretStr | None = None  # Fernet keys for stored credentials, newest first; None: a file in data_dir
    max_model_bytes: Annotated[int, Field(ge=0, le=1 << 60)] = 0  # largest model that a job may download; 0: no limit
    max_dataset_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 60)] = 4 << 30  # files of a Hub data set for one use
    hub_patience_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300.0  # wait for a download's next byte

    lease_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0
    heartbeat_seconds: Annotated[float, Field(gt=0, le=600)] = 10.0
    sweep_seconds: Annotated[float, Field(gt=0, le=600)] = 5.0
    retry_delay_seconds: Annotated[float, Field(ge=0, le=600)] = 1.0  # wait after a crash, times the attempts so far
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3  # of a job; each retry by a user allows as many more
    work_retention_seconds: Annotated[float, Field(ge=0, le=366 * 86_400)] = 86_400.0  # for a retry to resume

    drain_seconds: Annotated[float, Field(ge=0, le=7 * 86_400)] = 5.0  # time for a job to end after a worker's SIGTERM
    # After SIGTERM the API still answers requests for this long, while /readyz answers 503.
    unready_seconds: Annotated[float, Field(ge=0, le=600)] = 0.0

    otlp_endpoint: HttpUrl | None = None  # receives traces; None: OTEL_EXPORTER_OTLP_ENDPOINT, if set
    worker_metrics_host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    worker_metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None  # None: a worker serves no metrics

    publish_max_attempts: Annotated[int, Field(ge=1, le=100)] = 8
    publish_retry_seconds: Annotated[float, Field(ge=0, le=600)] = 5.0  # the first wait; doubles with each attempt

    webhook_allow_private: bool = False  # allows http, and private and loopback addresses
    webhook_allowed_networks: Annotated[str, _kept_if(parse_networks)] = ""  # such as 10.1.0.0/16,fd00::/8
    webhook_ca_file: Path | None = None  # certificates of your own authority, in PEM
    webhook_max_endpoints: Annotated[int, Field(ge=1, le=1000)] = 20  # for each tenant
    webhook_max_attempts: Annotated[int, Field(ge=1, le=100)] = 10  # over about three days by default
    webhook_retry_seconds: Annotated[float, Field(gt=0, le=600)] = 5.0  # first wait; the others are in proportion
    webhook_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 10.0  # limit of one whole attempt
    # A webhook is disabled if every attempt fails for this long; 0: never.
    webhook_disable_after_seconds: Annotated[float, Field(ge=0, le=366 * 86_400)] = 5 * 86_400.0
    webhook_rotation_seconds: Annotated[float, Field(ge=0, le=30 * 86_400)] = 86_400.0  # the old secret also signs
    webhook_retention_seconds: Annotated[float, Field(ge=3600, le=3660 * 86_400)] = 30 * 86_400.0  # ended deliveries
    webhook_concurrency: Annotated[int, Field(ge=0, le=64)] = 4  # deliveries at a time in one worker; 0: none

    def __init__(self, **values: Any) -> None:
        """Read the environment, over which ``values`` have precedence."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise with_variables(error, prefix="QUANTRY_") from None

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, values: object) -> object:
        """Treat an empty variable, as compose files and shells write it, as the default."""
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if value != ""}
        return values

    @model_validator(mode="after")
    def _leases_outlive_heartbeats(self) -> "Settings":
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                f"QUANTRY_LEASE_SECONDS is {self.lease_seconds:g} with QUANTRY_HEARTBEAT_SECONDS "
                f"{self.heartbeat_seconds:g}; a lease must outlive two heartbeats, or one lost beat loses the job."
            )
        return self

    @model_validator(mode="after")
    def _require_key_on_network(self) -> "Settings":
        if not is_loopback(self.host) and self.api_key is None and not self.allow_anonymous:
            raise ValueError(
                "QUANTRY_HOST is not a loopback address, so other machines could submit jobs without a key. "
                "Set QUANTRY_API_KEY to a long random string (clients send it as 'Authorization: Bearer …'), or, on a "
                "network you trust, set QUANTRY_ALLOW_ANONYMOUS=true; or leave QUANTRY_HOST at 127.0.0.1."
            )
        return self

    @property
    def artifacts_location(self) -> ArtifactLocation:
        """The place of published files: QUANTRY_ARTIFACTS_URL, or the data directory."""
        if self.artifacts_url is None:
            return ArtifactLocation(scheme="file", directory=self.artifacts_dir)
        return artifact_location(self.artifacts_url)

    @property
    def link_dirs(self) -> tuple[Path, ...]:
        """The directories into which links of local models may lead."""
        return parse_directories(self.model_link_dirs)

    @property
    def webhook_networks(self) -> tuple[Network, ...]:
        """The networks that webhooks may be sent to, besides public addresses."""
        return parse_networks(self.webhook_allowed_networks)

    @property
    def artifacts_dir(self) -> Path:
        """The directory of published files, unless QUANTRY_ARTIFACTS_URL names another store.

        Files that older releases published are always here.
        """
        return self.data_dir / "artifacts"

    @property
    def models_cache_dir(self) -> Path:
        """The directory of models from the Hub: ``<id>/<commit>``, and ``<commit>.partial`` during a download."""
        return self.data_dir / "models-cache"

    @property
    def datasets_cache_dir(self) -> Path:
        """The directory of data sets from the Hub: ``<id>/<commit>-<selection>``, with ``.partial`` while fetched."""
        return self.data_dir / "datasets-cache"

    @property
    def download_caches(self) -> tuple[Path, ...]:
        """The directories below which interrupted downloads wait to be continued."""
        return (self.models_cache_dir, self.datasets_cache_dir)

    @property
    def work_dir(self) -> Path:
        """The directory of the resumable stages of running jobs: ``<work_dir>/<job_id>/``."""
        return self.data_dir / "work"

    @property
    def publishing_dir(self) -> Path:
        """The directory of the files that running publications fetched: ``<publishing_dir>/<publication_id>/``."""
        return self.data_dir / "publishing"


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server bound to ``host``; the only trusted name is localhost."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the process's settings, which are read on first use."""
    return Settings()
