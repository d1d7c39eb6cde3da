"""The channel statistics that a policy needs. A record stores only these."""

from quant_engine.policy import Policy, Transform
from quant_engine.selection import candidates_of


def norms_of(policy: Policy) -> list[float]:
    """Every p whose ‖X_j‖_p some stage may read, without p = 2, which each record stores anyway."""
    wanted = {each.statistic.p for each in _transforms(policy) if each.statistic.kind == "lp"}
    if policy.search is not None and policy.search.kind == "grid":
        wanted |= set(policy.search.p)
    return sorted(wanted - {2.0})


def quantiles_of(policy: Policy) -> list[float]:
    """Every q below 1 whose exact quantile some stage may read; q = 1 is the maximum, which each record stores."""
    wanted = {transform.statistic.q for transform in _transforms(policy) if transform.statistic.kind == "quantile"}
    if policy.search is not None:
        wanted |= set(policy.search.q)
    return sorted(wanted - {1.0})


def _transforms(policy: Policy) -> list[Transform]:
    candidates = () if policy.selection is None else candidates_of(policy.selection)
    return [
        policy.transform,
        *(each.transform for each in policy.overrides if each.transform is not None),
        *(each for each in candidates if isinstance(each, Transform)),
    ]
