"""The stages of a run: the only list of their names, order, units and weights.

The pipeline, progress, metrics and retry use it. To add a stage, add a row here and run the stage from
:mod:`quant_engine.pipeline`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from quant_engine.policy import AnySearch, AnySelection, AnyTraining, Calibration, Evaluation, Output, Policy

_ALWAYS: Final = ("quantize", "evaluate")
_TOKENS: Final = 32_768
"""Tokens of the calibration with which the weights were measured."""


class UnknownStage(ValueError):
    """A stage, or the unit of one, that is not in :data:`STAGES`."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The parts of a job on which a stage's weight depends."""

    policy: Policy
    calibration: Calibration
    evaluation: Evaluation
    output: Output

    @property
    def tokens(self) -> float:
        """Calibration tokens, divided by the number with which the weights were measured."""
        return self.calibration.samples * self.calibration.sequence_length / _TOKENS


def _never(_: Policy) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage.

    Attributes:
        name: its name in the API, the files of a run and the metrics.
        units: the units in which its progress may be counted.
        weight: its relative cost, about the seconds that a 135M-parameter model takes on two cores; None where the
            policy does not need the stage. It is a rough estimate, and only the ratios matter.
        tasks: the policies' tasks that may need it.
        before: the stage before which it runs, if ``moved`` is true for the policy.
        moved: whether the policy changes the order.
        keeps_files: whether a later attempt can reuse its files, so that a retry may start from it.
    """

    name: str
    units: tuple[str, ...]
    weight: Callable[[Workload], float | None]
    tasks: tuple[str, ...] = ("quantize",)
    before: str | None = None
    moved: Callable[[Policy], bool] = _never
    keeps_files: bool = True


def _constant(weight: float) -> Callable[[Workload], float]:
    return lambda _: weight


def _calibrate(work: Workload) -> float:
    return 170.0 * work.tokens


def _search(work: Workload) -> float | None:
    search: AnySearch | None = work.policy.search
    if search is None:
        return None
    if search.kind == "paper":
        # T2 trains the best policies at two rates, and T1 trains once at every rate.
        trials = 2 * search.top + len(search.learning_rates)
        return 8.0 * (len(search.alpha) + len(search.q)) * work.tokens + 2.0 * trials * search.steps
    return 4.0 * len(search.alpha) * (len(search.q) + len(search.p) + int(search.l2)) * work.tokens


def _train(work: Workload) -> float | None:
    """Return the weight of training.

    Training of scales prepares and measures each layer once, besides its steps; patience ends most runs before the last
    step. The cost of blocks and rotations is in their steps alone.
    """
    training: AnyTraining | None = work.policy.training
    if training is None:
        return None
    if training.kind == "scales":
        return len(training.learning_rates) * (60.0 * work.tokens + 0.4 * training.steps)
    step = training.batch_samples * work.calibration.sequence_length / 2048
    return (30.0 if training.kind == "block" else 40.0) * step * training.steps


def _select(work: Workload) -> float:
    return 20.0 * (1 + _candidates(work.policy.selection)) * work.tokens


def _candidates(selection: AnySelection | None) -> int:
    # Without a selection the stage measures the one plan of each site.
    if selection is None:
        return 1
    return 2 if selection.kind == "kurtosis" else len(selection.candidates)


def _quantize(work: Workload) -> float:
    # GPTQ leads the samples through the blocks; rounding to nearest reads no tokens.
    return 5.0 if work.policy.weights.rounding == "rtn" else 240.0 * work.tokens


def _tune(work: Workload) -> float | None:
    tuning = work.policy.tuning
    if tuning is None:
        return None
    # A step sends its windows through the whole model and back; the judgments cost about a third more.
    return 4.0 * tuning.steps * tuning.batch_samples * work.calibration.sequence_length / 512


def _evaluate(work: Workload) -> float | None:
    """Return the weight of evaluation. A model that is quantized is measured twice: before and after."""
    if work.evaluation.perplexity is None:
        return None
    models = 1 if work.policy.task == "evaluate" else 2
    return 125.0 * models * work.evaluation.perplexity.tokens / 16_384


def _gguf_source(work: Workload) -> float | None:
    """Return the weight of writing the fused model, and of leading the calibration through it once."""
    return 80.0 * work.tokens if "gguf-source" in work.output.also else None


def _learns_rotations(policy: Policy) -> bool:
    return policy.training is not None and policy.training.kind == "rotation"


RESOLVE: Final = StageRow(name="resolve", units=("model", "byte"), weight=_constant(1.0), tasks=_ALWAYS)
"""Finding or downloading the model; the worker runs it."""

PUBLISH: Final = StageRow(name="publish", units=("byte",), weight=_constant(1.0), tasks=_ALWAYS, keeps_files=False)
"""Storing the output; the worker runs it. It is the last stage, so no retry starts from it."""

STAGES: Final = (
    RESOLVE,
    StageRow(name="load", units=("block",), weight=_constant(1.0), tasks=_ALWAYS),
    StageRow(name="calibrate", units=("block",), weight=_calibrate),
    StageRow(name="search", units=("layer", "trial"), weight=_search),
    # A learned rotation changes the inputs of every site, so the calibration has to follow it.
    StageRow(
        name="train", units=("layer", "block", "step"), weight=_train, before="calibrate", moved=_learns_rotations
    ),
    StageRow(name="select", units=("layer",), weight=_select),
    StageRow(name="quantize", units=("block",), weight=_quantize),
    StageRow(name="tune", units=("step",), weight=_tune),
    StageRow(name="evaluate", units=("block",), weight=_evaluate, tasks=_ALWAYS),
    # Before the export, because the card says what this stage found.
    StageRow(name="gguf_source", units=("block",), weight=_gguf_source),
    StageRow(name="export", units=("part",), weight=_constant(5.0)),
    StageRow(name="verify", units=("check",), weight=_constant(15.0)),
    PUBLISH,
)
"""Every stage, in the usual order."""

STAGE_NAMES: Final = tuple(row.name for row in STAGES)

if TYPE_CHECKING:
    RetryStage = str
else:
    RetryStage = Literal[tuple(row.name for row in STAGES if row.keeps_files)]
"""The stages from which a retry may start, as a type that pydantic checks. A type checker sees only ``str``, because it
can not read the names from a table."""


def require_stage(name: str, unit: str) -> None:
    """Check that a stage is in the list.

    Raises:
        UnknownStage: there is no stage of that name, or it is not counted in that unit.
    """
    units = {row.name: row.units for row in STAGES}
    if name not in units:
        raise UnknownStage(f"There is no stage {name!r}: stages are {', '.join(units)}.")
    if unit not in units[name]:
        raise UnknownStage(f"Stage {name!r} is counted in {' or '.join(units[name])}, not in {unit!r}.")


def stage_order(policy: Policy) -> tuple[str, ...]:
    """Return the names of all stages in the order of this policy. It includes stages that the policy does not need."""
    names = list(STAGE_NAMES)
    for row in STAGES:
        if row.before is not None and row.moved(policy):
            names.remove(row.name)
            names.insert(names.index(row.before), row.name)
    return tuple(names)


def stages_from(stage: str, policy: Policy) -> tuple[str, ...]:
    """Return the names of a stage and of those after it, which have to be computed again if the stage is."""
    order = stage_order(policy)
    return order[order.index(stage) :]


def stage_weights(
    policy: Policy, calibration: Calibration, evaluation: Evaluation, output: Output | None = None
) -> dict[str, float]:
    """Return the relative cost of each stage that the policy needs, by name, in the order in which they run."""
    work = Workload(policy=policy, calibration=calibration, evaluation=evaluation, output=output or Output())
    weights = {row.name: row.weight(work) for row in STAGES if policy.task in row.tasks}
    return {name: weight for name in stage_order(policy) if (weight := weights.get(name)) is not None}
