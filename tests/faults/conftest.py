"""Fixtures of fault tests that need one API or one worker; tests that need all processes start a fleet."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.main import create_app
from jobs.embedded import Urls
from jobs.repository.database import Database
from tests.api_server import serving
from tests.faults.offices import Apis, open_apis, open_office
from tests.integration.worker.conftest import Office


@pytest.fixture
def office(database: Database, embedded_urls: Urls, tmp_path: Path) -> Iterator[Office]:
    """Open a back office on the session's servers, without a worker yet."""
    with open_office(database, embedded_urls, tmp_path) as office:
        yield office


@pytest.fixture
def apis(office: Office) -> Iterator[Apis]:
    """Open the API of the office, without a process yet."""
    with open_apis(office) as apis:
        yield apis


@pytest.fixture
def client(office: Office) -> Iterator[httpx.Client]:
    """Return a client of an API in this process, over a socket, for tests that do not kill the API."""
    with serving(create_app(office.settings)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client
