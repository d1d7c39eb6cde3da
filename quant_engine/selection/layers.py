"""Choose the layers on which a search is scored (arXiv 2606.09927: *critical* and *normal* layers)."""

from collections.abc import Mapping

from quant_engine.interface.layers import LayerGroup
from quant_engine.policy import LayerChoice


def choose_layers(baseline_errors: Mapping[str, float], choice: LayerChoice) -> dict[str, LayerGroup]:
    """Rank the layers by baseline E, and return the group of each chosen one: the worst first, then the normal ones.

    The ``choice.critical`` layers with the largest errors are critical. Of the rest, ``choice.normal`` = 2 takes the
    median and the 25th percentile; in general percentiles 50 (n − i) / n for i = 0 … n − 1, each by nearest rank. If
    there are fewer layers than requested, all are taken. Equal errors rank by name.
    """
    ranked = sorted(baseline_errors, key=lambda name: (baseline_errors[name], name))
    split = max(len(ranked) - choice.critical, 0)
    critical, rest = ranked[split:][::-1], ranked[:split]
    groups: dict[str, LayerGroup] = dict.fromkeys(critical, "critical")
    groups |= dict.fromkeys(_percentiles(rest, choice.normal), "normal")
    return groups


def _percentiles(ascending: list[str], count: int) -> list[str]:
    if len(ascending) <= count:
        return ascending[::-1]
    ranks = [_nearest(0.5 * (count - i) / count * (len(ascending) - 1)) for i in range(count)]
    for i in range(1, count):  # with few layers two percentiles may have the same rank
        ranks[i] = min(ranks[i], ranks[i - 1] - 1)
    # Separating the ranks may push the last ones below 0; then all are shifted up by the same amount.
    lowest = min(ranks, default=0)
    return [ascending[rank - min(lowest, 0)] for rank in ranks]


def _nearest(position: float) -> int:
    return int(position + 0.5)  # half rounds up; ``round`` would round it to even
