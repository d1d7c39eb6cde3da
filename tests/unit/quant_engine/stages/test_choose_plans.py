"""Every kind of search and of training that a policy can name is one that a run knows how to carry out."""

from typing import get_args

from quant_engine.policy import AnySearch, AnyTraining
from quant_engine.stages import choose_plans


def _kinds(annotated: object) -> set[type]:
    """The members of a union that is annotated with its discriminator."""
    union, *_ = get_args(annotated)
    return {get_args(member)[0] if get_args(member) else member for member in get_args(union)}


def test_every_search_is_known() -> None:
    assert set(choose_plans._SEARCHES) == _kinds(AnySearch)


def test_every_training_is_known() -> None:
    assert set(choose_plans._TRAININGS) == _kinds(AnyTraining)
