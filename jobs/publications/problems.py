"""The problems of publications: why one failed or has to wait."""

from typing import Any

from jobs.kit.errors import JobProblem
from jobs.kit.storable import storable_json


def shown(problem: JobProblem, publication_id: str) -> dict[str, Any]:
    """Return the problem of this publication as JSON."""
    members: dict[str, Any] = storable_json(problem.as_json("") | {"instance": f"/v1/publications/{publication_id}"})
    return members


def crashed(attempts: int) -> JobProblem:
    """The problem of a publication whose upload process died on every attempt."""
    return JobProblem(
        code="crash_loop",
        category="platform",
        title="The upload crashed every time",
        detail=f"The process that uploads ended without a result {attempts} times.",
        hint="The checkpoint is safe: retry the publication. If it happens twice, the worker's log has the cause.",
    )
