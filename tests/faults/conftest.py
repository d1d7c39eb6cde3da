"""Where fault tests happen that need one API or one worker; those that need them all start a fleet."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.database import Database
from jobs.embedded import Urls
from tests.faults.offices import Apis, open_apis, open_office
from tests.integration.worker.conftest import Office


@pytest.fixture
def office(database: Database, embedded_urls: Urls, tmp_path: Path) -> Iterator[Office]:
    """A back office on the session's servers, without a worker yet."""
    with open_office(database, embedded_urls, tmp_path) as office:
        yield office


@pytest.fixture
def apis(office: Office) -> Iterator[Apis]:
    """Its API, without a process yet."""
    with open_apis(office) as apis:
        yield apis
