"""Which layers a search is scored on (arXiv 2606.09927: *critical* and *normal* layers)."""

from collections.abc import Mapping

from quant_engine.interface.layers import LayerGroup
from quant_engine.policy import LayerChoice


def choose_layers(baseline_errors: Mapping[str, float], choice: LayerChoice) -> dict[str, LayerGroup]:
    """The layers of each group by baseline E: the worst first, then the normal ones from the median down.

    Critical are the ``choice.critical`` largest. Of the rest, ``choice.normal`` = 2 takes the median and the 25th
    percentile; in general percentiles 50 (n − i) / n for i = 0 … n − 1, each by nearest rank. Fewer layers than asked
    for are all taken. Equal errors rank by name.
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
    for i in range(1, count):  # few layers, many percentiles: keep the ranks apart
        ranks[i] = min(ranks[i], ranks[i - 1] - 1)
    lowest = min(ranks, default=0)
    return [ascending[rank - min(lowest, 0)] for rank in ranks]


def _nearest(position: float) -> int:
    return int(position + 0.5)
