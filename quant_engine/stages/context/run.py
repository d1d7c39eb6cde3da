"""The values that all stages of one run share: the model, the sites to quantize, and the settings of each site."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant_engine.calibration import Purpose, load_tokenizer
from quant_engine.checkpoint import OnlineInput, QuantizedLinear
from quant_engine.errors import NoMatchingLayer, UnsupportedPolicy
from quant_engine.execution import Execution
from quant_engine.grids import export_dtype
from quant_engine.interface.architectures import Architecture
from quant_engine.interface.observer import Observer
from quant_engine.interface.pattern_check import check_patterns
from quant_engine.interface.positions import check_positions
from quant_engine.interface.problems import refuse
from quant_engine.interface.site_settings import allowed_transform, site_problems, site_settings
from quant_engine.interface.spec import RunSpec
from quant_engine.model_files import FileRules
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
from quant_engine.policy import Policy, Residual, SiteSettings, Transform
from quant_engine.resume_state import StateFile
from quant_engine.stages.context.source import open_source
from quant_engine.transforms import SitePlan
from quant_engine.windows import Windows


def start_rotation(base: WeightSource, residual: Residual) -> ResidualRotation:
    """The rotation that the seed of a policy's ``residual`` draws, before any training."""
    return hadamard_rotation(model_configuration(base.config), seed=residual.seed, value_heads=residual.heads)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What does not change during one run.

    Attributes:
        base: the stored checkpoint, dense or quantized already. ``dense`` is the model that it represents.
        source: what is quantized: ``dense`` itself, or its rotated view where the policy rotates the residual stream.
        model: streams ``source`` in fp32, for calibration and for everything that is computed on weights.
        every_site: all sites of the model; ``sites`` are those that the policy quantizes.
        settings: by site name.
        cut: the windows that are cut already, so that no text is read and tokenized twice.
    """

    spec: RunSpec
    work_dir: Path
    observer: Observer
    base: CheckpointSource
    dense: WeightSource
    source: WeightSource
    model: StreamedModel
    every_site: list[Site]
    sites: list[Site]
    settings: dict[str, SiteSettings]
    cut: dict[Purpose, list[Windows]] = field(default_factory=dict, repr=False)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            ModelNotFound, InvalidModel: there is no usable one.
        """
        return load_tokenizer(self.spec.model_dir, self.base.rules)

    def site_weights(self, site: Site) -> list[Tensor]:
        """The fp32 weight [O, I] of each linear to quantize, memory-mapped where the checkpoint is fp32."""
        names = [f"{reader}.weight" for reader in site.readers]
        # fp32 even for half-precision checkpoints: transforms and errors are computed on these weights.
        stored = self.source.read(names, dtype=self.model.dtype, device=self.model.device)
        return [stored[name] for name in names]

    def quantized_linears(self, site: Site, plan: SitePlan) -> list[QuantizedLinear]:
        """How each linear of a site is exported under ``plan``."""
        settings = self.settings[site.name]
        # All linears of the site share this object, because they read the same tensor. The diagonal is not part of it:
        # it is fused into the weights.
        online = OnlineInput(
            primitives=plan.to(self.model.device).online,
            clip_ratio=plan.clip_of(settings.activations),
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
        """``transform``, reduced to its diagonal or to nothing where ``policy.online`` forbids an online transform."""
        return allowed_transform(transform, site.role, self.spec.policy.online)

    def execution(self, states: StateFile | None = None) -> Execution:
        """The execution of a pass or a training of this run, which stores its latest state in ``states``."""
        return Execution(states=states, low_memory=self.spec.low_memory)

    def policy_inputs(self) -> dict[str, Any]:
        """The policy as an input of a stage, without the name of its preset."""
        # Equal policies compute the same, whatever they are called, so the name must not invalidate a stage's files.
        return self.spec.policy.model_dump(mode="json", exclude={"preset"})


def prepare_run(spec: RunSpec, *, work_dir: Path, observer: Observer, rotation: ResidualRotation | None = None) -> Run:
    """Open the model and apply the policy to its sites.

    Args:
        rotation: the learned rotation of the residual stream; the policy's own start where it is None.

    Raises:
        ModelNotFound, UnsafeCheckpoint, InvalidModel, UnsupportedArchitecture: the model can not be used.
        AdapterNotMerged, UnsupportedQuantization: see :func:`open_source`.
        NoMatchingLayer, UnsupportedPolicy: the policy, or the length of a window, does not fit it.
    """
    base = CheckpointSource(spec.model_dir, export_dtype=_export_dtype(spec.policy), rules=FileRules(spec.link_dirs))
    # The rotation is applied while tensors are read (docs/decisions/0009), so every later step sees an ordinary model.
    dense = open_source(base, spec.device, weights_only=True)
    check_positions(dense.config, spec.calibration, spec.evaluation)
    source = dense
    if spec.policy.residual is not None:
        source = RotatedSource(dense, rotation or start_rotation(dense, spec.policy.residual))
    model = StreamedModel(source, device=spec.device)
    every_site = model_sites(model.config, model.architecture)
    _check_patterns(spec.policy, every_site, model.architecture)
    sites = target_sites(every_site, spec.policy)
    refuse(site_problems(sites, spec.policy))
    return Run(
        spec=spec,
        work_dir=work_dir,
        observer=observer,
        base=base,
        dense=dense,
        source=source,
        model=model,
        every_site=every_site,
        sites=sites,
        settings={site.name: site_settings(site, spec.policy) for site in sites},
    )


def _check_patterns(policy: Policy, sites: list[Site], architecture: Architecture) -> None:
    """Refuse a policy with patterns that mean nothing in this model.

    Raises:
        NoMatchingLayer: with every such entry, by its place in the request.
    """
    linears = [reader for site in sites for reader in site.all_readers]
    findings = check_patterns(policy, linears, architecture)
    if findings:
        each = " ".join(f"{finding.pointer}: {finding.detail}" for finding in findings)
        raise NoMatchingLayer(
            detail=f"Entries of the policy match no linear that can be quantized as asked. {each}",
            hint="Correct these entries and submit the job again.",
        )


def _export_dtype(policy: Policy) -> torch.dtype | None:
    """The type that one of the policy's formats prescribes for the checkpoint (fp4: bfloat16); None for the model's.

    Raises:
        UnsupportedPolicy: two of its formats prescribe different types.
    """
    weights = [policy.weights, *(each.weights for each in policy.overrides if each.weights is not None)]
    wanted = {each.format: export_dtype(each.format) for each in weights}
    found = {dtype for dtype in wanted.values() if dtype is not None}
    if len(found) > 1:
        raise UnsupportedPolicy(
            detail=f"Readers run {', '.join(f'{each.value} in {dtype}' for each, dtype in wanted.items())}; "
            "a checkpoint has one type.",
            hint="Use formats that are run in the same type.",
        )
    return next(iter(found), None)
