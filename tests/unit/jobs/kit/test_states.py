"""The table of transitions says the same as the contract."""

from jobs.kit.states import HELD, RETRIABLE, TERMINAL, TRANSITIONS, JobStatus, sources


def test_every_state_is_in_the_table_and_only_ends_are_terminal() -> None:
    assert set(TRANSITIONS) == set(JobStatus)
    assert {"succeeded", "failed", "cancelled"} == TERMINAL
    assert all(status.is_terminal == (status in TERMINAL) for status in JobStatus)


def test_a_finished_model_comes_from_a_running_job_only() -> None:
    assert sources(JobStatus.SUCCEEDED) == {JobStatus.RUNNING}


def test_a_cancelling_job_can_only_become_cancelled() -> None:
    assert TRANSITIONS[JobStatus.CANCELLING] == {JobStatus.CANCELLED}


def test_success_is_final_and_the_other_ends_are_left_for_the_queue_only() -> None:
    assert TRANSITIONS[JobStatus.SUCCEEDED] == frozenset()
    assert {"failed", "cancelled"} == RETRIABLE
    assert all(TRANSITIONS[status] == {JobStatus.QUEUED} for status in RETRIABLE)
    assert sources(JobStatus.QUEUED) == RETRIABLE | {JobStatus.RUNNING}


def test_sources_are_the_table_read_backwards() -> None:
    for source, targets in TRANSITIONS.items():
        for target in JobStatus:
            assert (source in sources(target)) == (target in targets)


def test_a_lease_is_held_in_exactly_the_states_between_start_and_end() -> None:
    assert set(JobStatus) - TERMINAL - {JobStatus.QUEUED} == HELD
