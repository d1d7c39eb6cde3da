"""Site plans on disk, one small safetensors file each: the scales as a tensor, the rest as metadata."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from quant_engine.models import Site
from quant_engine.policy import Statistic, TransformKind
from quant_engine.stages.files import whole_file
from quant_engine.transforms import SitePlan

PlanReader = Callable[[Site], SitePlan | None]
"""A site's plan from an earlier stage; None where there is none."""


def plan_reader(directory: Path | None) -> PlanReader:
    """Reads the plans that a stage left in ``directory``; without one there are none."""

    def read(site: Site) -> SitePlan | None:
        if directory is None or not plan_path(directory, site).is_file():
            return None
        return read_plan(directory, site)

    return read


def plan_path(directory: Path, site: Site) -> Path:
    """Where a site's plan lies."""
    return directory / f"{site.name}.safetensors"


def plan_fields(plan: SitePlan) -> dict[str, Any]:
    """A plan without its scales, as JSON."""
    return {
        "kind": plan.kind.value,
        "alpha": plan.alpha,
        "statistic": None if plan.statistic is None else plan.statistic.model_dump(mode="json"),
        "label": plan.label,
        "order": plan.order,
    }


def write_plan(directory: Path, site: Site, plan: SitePlan) -> None:
    """Write a plan, whole or not at all."""
    tensors = {} if plan.scales_D is None else {"scales": plan.scales_D.detach().float().cpu().contiguous()}
    with whole_file(plan_path(directory, site)) as temporary:
        save_file(tensors, temporary, metadata={"plan": json.dumps(plan_fields(plan), sort_keys=True)})


def read_plan(directory: Path, site: Site) -> SitePlan:
    """Read a plan back; its scales are the same bits."""
    with safe_open(plan_path(directory, site), framework="pt") as file:
        fields = json.loads(file.metadata()["plan"])
        scales_D = file.get_tensor("scales").clone() if "scales" in file.keys() else None  # noqa: SIM118  # no mapping
    statistic = fields["statistic"]
    return SitePlan(
        kind=TransformKind(fields["kind"]),
        alpha=fields["alpha"],
        statistic=None if statistic is None else Statistic.model_validate(statistic),
        label=fields["label"],
        scales_D=scales_D,
        order=fields["order"],
    )
