"""Why a publication failed, or has to wait, as its view shows it."""

from typing import Any

from jobs.kit.errors import JobProblem
from jobs.kit.storable import storable_json


def shown(problem: JobProblem, publication_id: str) -> dict[str, Any]:
    """The problem as JSON, of this publication."""
    members: dict[str, Any] = storable_json(problem.as_json("") | {"instance": f"/v1/publications/{publication_id}"})
    return members


def crashed(attempts: int) -> JobProblem:
    """The process that uploads died on every attempt."""
    return JobProblem(
        code="crash_loop",
        category="platform",
        title="The upload crashed every time",
        detail=f"The process that uploads ended without a result {attempts} times.",
        hint="The checkpoint is safe: retry the publication. If it happens twice, the worker's log has the cause.",
    )
