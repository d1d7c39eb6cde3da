"""P11: a job whose runner is killed with SIGKILL, in any stage, ends with the bytes of a job that nobody disturbed.

The runner is the real one, on the real engine; the worker's supervisor takes the job up again, in a new process.
"""

import pydoc_data.topics
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pytest
from sqlalchemy import text

from jobs.embedded import Urls
from jobs.repository.database import Database
from tests.faults import failpoints
from tests.faults.dying_runner import NOWHERE
from tests.faults.offices import open_office
from tests.faults.scale import FULL
from tests.integration.worker.conftest import TENANT, Office, eventually
from tests.tiny_models import write_tiny_model
from worker.outcomes import Outcome

STAGES: Final = ("calibrate", "search", "train", "select", "quantize", "evaluate", "export", "verify")
IN_STAGES: Final = tuple(f"{stage}:1" for stage in STAGES)
"""After a stage's first unit of work."""
AT_RENAMES: Final = tuple(f"{moment}:{hits}" for moment in ("before", "after") for hits in (1, 2, 3, 5, 8, 13, 21))
"""Just before or just after so many files have come to their place."""
KILLS: Final = (
    (IN_STAGES, *((place,) for place in (*IN_STAGES, *AT_RENAMES)))
    if FULL
    else (("calibrate:1", "before:2", "train:1", "quantize:1"),)
)
"""Of each job, where it is killed, one attempt after the other."""

CRAMPED: Final = (sys.executable, "-P", "-m", "tests.faults.cramped_runner")
TEXT: Final = "\n".join(sorted(pydoc_data.topics.topics.values()))[100_000:]
REQUEST: Final[dict[str, Any]] = {
    "policy": {
        "preset": "trainable-smoothrot-w4a4",
        "search": {"alpha": [0.5], "q": [0.99, 1.0], "layers": {"critical": 1, "normal": 1}},
        "training": {"steps": 20, "warmup": 2, "patience": 20},
    },
    "calibration": {"dataset": {"texts": [TEXT[:4000]]}, "samples": 8, "sequence_length": 32},
    "evaluation": {"perplexity": {"dataset": {"texts": [TEXT[4000:8000]]}, "tokens": 128, "sequence_length": 32}},
}


@pytest.fixture(scope="module")
def office(database_url: str, embedded_urls: Urls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """One with a tiny model. The machine computes while it beats: a longer lease; and it dies more than thrice."""
    database = Database(database_url)
    with database.transaction() as session:
        session.execute(text("DELETE FROM jobs"))  # an attempt takes the oldest
    settings = {"lease_seconds": 15.0, "retry_delay_seconds": 0.0, "max_attempts": len(STAGES) + 1}
    with open_office(database, embedded_urls, tmp_path_factory.mktemp("office"), **settings) as office:
        write_tiny_model(office.settings.models_dir / "tiny", layers=3, outliers=True)
        yield office
    database.close()


def attempt(office: Office, place: str = NOWHERE) -> Outcome | None:
    """One attempt at the oldest job, by a runner that dies at ``place``."""
    kind, _, hits = place.partition(":")
    if kind in ("before", "after"):
        point = failpoints.FailPoint("runner", "rename", "before" if kind == "before" else "after", int(hits))
        failpoints.arm(office.settings.data_dir, point)
        place = NOWHERE
    return office.supervisor(runner=(sys.executable, "-P", "-m", "tests.faults.dying_runner", place)).run_next()


def outcome_of(office: Office, job_id: str) -> tuple[Any, ...]:
    """All that a job published: every file by its digest, and what the service tells of them."""
    artifacts = office.queries.list_artifacts(job_id, tenant=TENANT).data
    layers = office.queries.list_layers(job_id, tenant=TENANT).data
    files = {artifact.path: artifact.sha256 for artifact in artifacts}
    return files, layers, office.queries.get_report(job_id, tenant=TENANT), office.job(job_id).summary


@pytest.fixture(scope="module")
def undisturbed(office: Office) -> tuple[Any, ...]:
    """What the job is when nothing happens to it."""
    job_id = office.submit("tiny", **REQUEST)
    assert attempt(office) is Outcome.SUCCEEDED
    outcome = outcome_of(office, job_id)
    assert {"checkpoint/model.safetensors", "report.json"} <= outcome[0].keys()
    return outcome


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("places", KILLS, ids=" ".join)
def test_a_job_killed_at_these_places_ends_with_the_same_bytes(
    places: Sequence[str], office: Office, undisturbed: tuple[Any, ...]
) -> None:
    job_id = office.submit("tiny", **REQUEST)
    for place in places:
        assert attempt(office, place) is Outcome.CRASHED, place
    assert attempt(office) is Outcome.SUCCEEDED
    assert office.job(job_id).attempt == len(places) + 1
    assert outcome_of(office, job_id) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_lacks_memory_ends_with_the_same_numbers_but_for_rounding(
    office: Office, undisturbed: tuple[Any, ...]
) -> None:
    job_id = office.submit("tiny", **REQUEST)
    assert office.supervisor(runner=CRAMPED).run_next() is Outcome.STARVED
    eventually(lambda: office.job(job_id).status == "queued")
    assert office.supervisor(runner=CRAMPED).run_next() is Outcome.SUCCEEDED
    assert office.job(job_id).attempt == 2
    files, _, report, summary = outcome_of(office, job_id)
    assert files.keys() == undisturbed[0].keys()
    assert summary["perplexity"] == pytest.approx(undisturbed[3]["perplexity"], rel=1e-3)
    errors, usual = ({row["name"]: row["error"] for row in told["layers"]} for told in (report, undisturbed[2]))
    assert errors == pytest.approx(usual, rel=1e-3)
