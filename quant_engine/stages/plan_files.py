"""Read and write site plans, one safetensors file each: tensors as tensors, all other fields as metadata."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from quant_engine.atomic_write import atomic_write
from quant_engine.models import Site
from quant_engine.policy import Statistic, TransformKind
from quant_engine.transforms import SitePlan
from quant_engine.transforms.primitives import primitive_from

PlanReader = Callable[[Site], SitePlan | None]
"""A site's plan from an earlier stage; None where there is none."""


def plan_reader(directory: Path | None) -> PlanReader:
    """Return a reader of the plans that a stage wrote into ``directory``; without a directory it finds none."""

    def read(site: Site) -> SitePlan | None:
        if directory is None or not plan_path(directory, site).is_file():
            return None
        return read_plan(directory, site)

    return read


def plan_path(directory: Path, site: Site) -> Path:
    """The path of a site's plan."""
    return directory / f"{site.name}.safetensors"


def plan_fields(plan: SitePlan) -> dict[str, Any]:
    """A plan without its tensors, as JSON."""
    return {
        "kind": plan.kind.value,
        "alpha": plan.alpha,
        "statistic": None if plan.statistic is None else plan.statistic.model_dump(mode="json"),
        "label": plan.label,
        "online": [primitive.fields() for primitive in plan.online],
        "clip_ratio": plan.clip_ratio,
        "input_peak": plan.input_peak,
    }


def write_plan(directory: Path, site: Site, plan: SitePlan) -> None:
    """Write a plan atomically."""
    tensors = {
        f"online.{i}.{key}": value for i, each in enumerate(plan.online) for key, value in each.tensors().items()
    }
    if plan.scales_D is not None:
        tensors["scales"] = plan.scales_D.float()
    if plan.permutation_D is not None:
        tensors["permutation"] = plan.permutation_D
    if plan.weight_clip_OG is not None:
        tensors["weight_clip"] = plan.weight_clip_OG.float()
    # safetensors refuses tensors that are not contiguous.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(plan_path(directory, site)) as temporary:
        save_file(tensors, temporary, metadata={"plan": json.dumps(plan_fields(plan), sort_keys=True)})


def read_plan(directory: Path, site: Site) -> SitePlan:
    """Read a plan that :func:`write_plan` wrote, bit for bit."""
    with safe_open(plan_path(directory, site), framework="pt") as file:
        fields = json.loads(file.metadata()["plan"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no mapping
    statistic = fields["statistic"]
    return SitePlan(
        kind=TransformKind(fields["kind"]),
        alpha=fields["alpha"],
        statistic=None if statistic is None else Statistic.model_validate(statistic),
        label=fields["label"],
        scales_D=tensors.get("scales"),
        permutation_D=tensors.get("permutation"),
        online=tuple(primitive_from(each, _part(tensors, f"online.{i}.")) for i, each in enumerate(fields["online"])),
        clip_ratio=fields["clip_ratio"],
        input_peak=fields["input_peak"],
        weight_clip_OG=tensors.get("weight_clip"),
    )


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
