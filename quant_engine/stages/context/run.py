"""What every stage of one run shares: the model, the sites to quantize, and each site's settings."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from quant_engine.calibration import Purpose, characters_for, dataset_text
from quant_engine.checkpoint import OnlineInput, QuantizedLinear
from quant_engine.errors import UnsupportedPolicy
from quant_engine.grids import misfitting_groups, nearest_divisors
from quant_engine.hadamard import hadamard_order
from quant_engine.interface.observer import Observer
from quant_engine.interface.spec import RunSpec
from quant_engine.models import (
    CheckpointSource,
    ResidualRotation,
    RotatedSource,
    Site,
    StreamedModel,
    WeightSource,
    hadamard_rotation,
    model_configuration,
    model_sites,
    target_sites,
)
from quant_engine.policy import (
    SELF,
    ActivationQuantization,
    Candidate,
    InlineTexts,
    Policy,
    Residual,
    Transform,
    TransformKind,
    WeightQuantization,
    matches,
)
from quant_engine.transforms import SitePlan


def start_rotation(base: CheckpointSource, residual: Residual) -> ResidualRotation:
    """The rotation that a policy's ``residual`` draws."""
    return hadamard_rotation(model_configuration(base.config), seed=residual.seed, value_heads=residual.heads)


_INNER_ROLES: Final = ("attention_output", "feed_forward_inner")


@dataclass(frozen=True, kw_only=True)
class SiteSettings:
    """The policy as it stands for one site, overrides applied."""

    weights: WeightQuantization
    activations: ActivationQuantization
    transform: Transform


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run's invariants.

    Attributes:
        base: the checkpoint as it is; ``source`` is what is quantized, the same unless the residual stream is rotated.
        model: streams ``source`` in fp32, for calibration and for everything that is computed on weights.
        every_site: all sites of the model; ``sites`` are those that the policy quantizes.
        settings: by site name.
    """

    spec: RunSpec
    work_dir: Path
    observer: Observer
    base: CheckpointSource
    source: WeightSource
    model: StreamedModel
    every_site: list[Site]
    sites: list[Site]
    settings: dict[str, SiteSettings]

    def site_weights(self, site: Site) -> list[Tensor]:
        """The fp32 weight [O, I] of each linear to quantize, memory-mapped where the checkpoint is fp32."""
        names = [f"{reader}.weight" for reader in site.readers]
        stored = self.source.read(names, dtype=self.model.dtype, device=self.model.device)
        return [stored[name] for name in names]

    def quantized_linears(self, site: Site, plan: SitePlan) -> list[QuantizedLinear]:
        """How each linear of a site is exported under ``plan``."""
        settings = self.settings[site.name]
        online = OnlineInput(
            primitives=plan.to(self.model.device).online,
            clip_ratio=plan.runtime_clip(settings.activations),
        )
        return [
            QuantizedLinear(
                name=name,
                weights=settings.weights,
                activations=settings.activations,
                online=online,
                input_peak=plan.input_peak,
            )
            for name in site.readers
        ]

    def allowed(self, site: Site, transform: Transform) -> Transform:
        """``transform`` reduced to what ``policy.online`` lets this site compute: the diagonal, or nothing."""
        return allowed_transform(transform, site.role, self.spec.policy.online)

    def policy_inputs(self) -> dict[str, Any]:
        """The policy as an input of a stage; its preset's name does not count."""
        return self.spec.policy.model_dump(mode="json", exclude={"preset"})


def prepare_run(spec: RunSpec, *, work_dir: Path, observer: Observer, rotation: ResidualRotation | None = None) -> Run:
    """Open the model and settle what the policy means for it.

    Args:
        rotation: the learned rotation of the residual stream; the policy's own start where it is None.

    Raises:
        ModelNotFound, UnsafeCheckpoint, UnsupportedArchitecture: the model can not be used.
        NoMatchingLayer, UnsupportedPolicy: the policy does not fit it.
    """
    base = CheckpointSource(spec.model_dir, export_dtype=_export_dtype(spec.policy))
    source: WeightSource = base
    if spec.policy.residual is not None:
        source = RotatedSource(base, rotation or start_rotation(base, spec.policy.residual))
    model = StreamedModel(source, device=spec.device)
    every_site = model_sites(model.config, model.architecture)
    sites = target_sites(every_site, spec.policy)
    return Run(
        spec=spec,
        work_dir=work_dir,
        observer=observer,
        base=base,
        source=source,
        model=model,
        every_site=every_site,
        sites=sites,
        settings={site.name: _settings_of(site, spec.policy) for site in sites},
    )


def _export_dtype(policy: Policy) -> torch.dtype | None:
    """The only type that readers run fp4 weights in, where the policy has some; None for the model's own."""
    weights = [policy.weights, *(each.weights for each in policy.overrides if each.weights is not None)]
    return torch.bfloat16 if any(each.format.group_size is not None for each in weights) else None


def allowed_transform(transform: Transform, role: str, online: str) -> Transform:
    """What is left of ``transform`` at a site of ``role`` where ``online`` says which sites may rotate their input."""
    if online == "all" or (online == "inner" and role in _INNER_ROLES) or not transform.kind.rotates:
        return transform
    kind = TransformKind.SMOOTH if transform.kind.scales_channels else TransformKind.NONE
    return transform.model_copy(update={"kind": kind})


def norms_of(policy: Policy) -> list[float]:
    """Every p other than 2 whose ‖X_j‖_p some stage may ask for."""
    wanted = {each.statistic.p for each in _transforms(policy) if each.statistic.kind == "lp"}
    if policy.search is not None and policy.search.kind == "grid":
        wanted |= set(policy.search.p)
    return sorted(wanted - {2.0})


def quantiles_of(policy: Policy) -> list[float]:
    """Every q below 1 whose exact quantile some stage may ask for; q = 1 is the maximum."""
    wanted = {transform.statistic.q for transform in _transforms(policy) if transform.statistic.kind == "quantile"}
    if policy.search is not None:
        wanted |= set(policy.search.q)
    return sorted(wanted - {1.0})


def text_for(run: Run, dataset: str | InlineTexts | None, purpose: Purpose, tokens: int) -> str:
    """The text of a request's data set, long enough for ``tokens`` tokens where there is that much."""
    return dataset_text(
        resolved_dataset(run, dataset), purpose, run.spec.datasets_dir, max_characters=characters_for(tokens)
    )


def resolved_dataset(run: Run, dataset: str | InlineTexts | None) -> str | InlineTexts:
    """The request's data set, or the operator's default."""
    return run.spec.default_dataset if dataset is None else dataset


def dataset_inputs(run: Run, dataset: str | InlineTexts | None, purpose: Purpose, tokens: int) -> str:
    """What a stage's digest says about its text: a hash of it, or ``self``, which the model's fingerprint covers."""
    if resolved_dataset(run, dataset) == SELF:
        return SELF
    return hashlib.sha256(text_for(run, dataset, purpose, tokens).encode()).hexdigest()


def _transforms(policy: Policy) -> list[Transform]:
    selection = policy.selection
    candidates: tuple[Candidate, ...] = ()
    if selection is not None:
        candidates = (selection.outlying, selection.typical) if selection.kind == "kurtosis" else selection.candidates
    return [
        policy.transform,
        *(each.transform for each in policy.overrides if each.transform is not None),
        *(each for each in candidates if isinstance(each, Transform)),
    ]


def _settings_of(site: Site, policy: Policy) -> SiteSettings:
    """The settings that all of a site's linears share, checked against its width."""
    each = [_linear_settings(reader, policy) for reader in site.readers]
    if any(other != each[0] for other in each):
        raise UnsupportedPolicy(
            detail=f"{', '.join(site.readers)} read the same input but are given different settings.",
            hint="Write overrides so that they match all of these linears, or none.",
        )
    _check_own_groups(site, each[0])
    size = each[0].weights.group_size
    if size is not None and site.features % size:
        raise UnsupportedPolicy(
            detail=f"weights.group_size {size} does not divide the {site.features} inputs of {site.name}.",
            hint=f"Use {nearest_divisors(site.features, size)}, the nearest divisors of {site.features}, or "
            "granularity 'channel'.",
        )
    transform = allowed_transform(each[0].transform, site.role, policy.online)
    if transform.kind.rotates:
        hadamard_order(site.features, transform.block_size)
    return replace(each[0], transform=transform)


def _check_own_groups(site: Site, settings: SiteSettings) -> None:
    for field, number_format in (("weights", settings.weights.format), ("activations", settings.activations.format)):
        size = number_format.group_size
        if size is not None and site.features % size:
            raise misfitting_groups(number_format, site.features, field)


def _linear_settings(name: str, policy: Policy) -> SiteSettings:
    weights, activations, transform = policy.weights, policy.activations, policy.transform
    for override in policy.overrides:
        if matches(override.match, name):
            weights = override.weights or weights
            activations = override.activations or activations
            transform = override.transform or transform
    return SiteSettings(weights=weights, activations=activations, transform=transform)
