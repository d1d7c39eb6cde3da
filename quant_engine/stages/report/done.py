"""What a run did, collected from the results of its stages."""

from collections.abc import Mapping, Sequence
from typing import Any

from quant_engine.checkpoint.done import Choices, what_was_done
from quant_engine.interface.layers import LayerRow
from quant_engine.policy import RotationTraining
from quant_engine.stages.choose_plans import ChosenPlans
from quant_engine.stages.context.run import Run
from quant_engine.stages.quantize.block_files import Plans, block_linears, dense_linears


def done_by(
    run: Run,
    plans: Plans,
    rows: Sequence[LayerRow],
    chosen: ChosenPlans | None,
    tuning: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What was done, as :func:`what_was_done` returns it.

    Args:
        chosen: None where nothing but the plans is known.
        tuning: the losses of stage ``tune``, if it ran.
    """
    selected = {} if chosen is None else {site: each["chosen"] for site, each in chosen.selection.choices.items()}
    choices = Choices(
        search=None if chosen is None else chosen.search,
        blocks=None if chosen is None else chosen.training,
        learning_rate=None if chosen is None else chosen.learning_rate,
        selected=selected,
        tuning=tuning,
        residual=_residual(run),
        learned_clips=frozenset(
            name for site in run.sites if plans[site.name].weight_clip_OG is not None for name in site.readers
        ),
    )
    linears = [each for block in block_linears(run, plans).values() for each in block.values()]
    return what_was_done(linears, dense_linears(run), rows, choices)


def _residual(run: Run) -> dict[str, Any] | None:
    policy = run.spec.policy
    if policy.residual is None:
        return None
    # All steps of this training are taken; it has no patience.
    steps = policy.training.steps if isinstance(policy.training, RotationTraining) else None
    return {"value_heads": policy.residual.heads, "learned_steps": steps}
