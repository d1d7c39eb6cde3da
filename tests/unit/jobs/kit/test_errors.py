"""The error tree: every class has a status, a code of its own and a title."""

from collections.abc import Iterator

import pytest

from jobs.kit import errors
from jobs.kit.errors import InvalidPolicy, JobProblem, QuantryError, crash_loop, queue_deadline, run_deadline


def tree(root: type[QuantryError]) -> Iterator[type[QuantryError]]:
    """The classes of this module; the API grows a branch of its own, and other tests may have imported it."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def test_every_class_has_its_own_code_and_is_drawn_in_the_docstring() -> None:
    classes = list(tree(QuantryError))
    assert len({error.code for error in classes}) == len(classes)
    for error in classes:
        assert 400 <= error.status < 600
        assert error.title
        assert errors.__doc__ is not None
        assert error.__name__ in errors.__doc__


def test_an_invalid_request_names_the_place_and_may_bring_its_own_code() -> None:
    error = InvalidPolicy("No.", pointer="/policy/preset", code="unknown_preset", hint="Choose another.")
    assert (error.status, error.code, error.hint) == (422, "unknown_preset", "Choose another.")
    assert [(place.pointer, place.code, place.detail) for place in error.errors] == [
        ("/policy/preset", "unknown_preset", "No.")
    ]
    assert InvalidPolicy.code == "invalid_policy"


@pytest.mark.parametrize(
    ("problem", "code", "category", "status"),
    [
        (crash_loop(3), "crash_loop", "platform", 500),
        (queue_deadline(60), "deadline_exceeded", "capacity", 503),
        (run_deadline(60), "deadline_exceeded", "user", 422),
    ],
)
def test_a_failed_jobs_error_is_a_problem_with_a_remedy(
    problem: JobProblem, code: str, category: str, status: int
) -> None:
    shown = problem.as_json("job_1")
    assert (shown["code"], shown["category"], shown["status"]) == (code, category, status)
    assert shown["type"] == f"urn:quantry:problem:{code}"
    assert shown["instance"] == "/v1/jobs/job_1"
    assert shown["hint"]
