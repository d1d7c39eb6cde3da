"""Stage ``tune``: train the scales and the norms of the rounded model on the predictions of the original one.

It writes the same files as ``quantize``, with other scales and norms in them; the codes are unchanged. The rows of the
layers are measured again, because both change them.

Shapes: B windows of T tokens, D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quant_engine.atomic_write import atomic_write
from quant_engine.calibration import split_samples
from quant_engine.checkpoint import unpacked_state
from quant_engine.interface.architectures import ProducerKind
from quant_engine.interface.layers import LayerRow
from quant_engine.models import HiddenStates, StreamedModel
from quant_engine.policy import Tuning
from quant_engine.resume_state import StateFile
from quant_engine.stages.calibrate import RECORDS, read_windows, training_windows
from quant_engine.stages.context.run import Run
from quant_engine.stages.quantize.block_files import Plans, block_linears, block_path
from quant_engine.stages.quantize.remeasured_rows import remeasure
from quant_engine.stages.stage import Stage, StageProgress, read_json, write_json
from quant_engine.training.learnable import plan_inputs
from quant_engine.training.quantized_linears import SharedInput
from quant_engine.training.tunable import TunableLinear, TunableNorms, forget_inputs, learned_scales
from quant_engine.training.tuning import Predictor, tune
from quant_engine.transforms import SitePlan
from quant_engine.windows import Windows

ENDS: Final = "ends.safetensors"
_FILE: Final = "tuning.json"
_STATE_SHARE: Final = 0.1


def tune_stage(
    run: Run, tuning: Tuning, plans: Plans, rows: Sequence[LayerRow], calibrated: Path, quantized: Path, upstream: str
) -> Stage:
    """The stage that writes the tuned files, ``tuning.json`` and the rows. One unit per step.

    The whole model is in memory, in fp32. A killed attempt continues from the latest judgment.

    Args:
        rows: of the layers, as ``select`` measured them.
        quantized: the directory of ``quantize``.
    """

    def produce(directory: Path, progress: StageProgress) -> None:
        windows = training_windows(run, read_windows(calibrated)).to(run.model.device)
        calibration = run.spec.calibration
        tunable = _Tunable(run, plans, quantized)
        found = tune(
            tunable.parameters(tuning),
            tunable.predict,
            _original(run, windows),
            windows,
            split_samples(calibration.samples, calibration.holdout).fit,
            tuning,
            seed=calibration.seed,
            on_step=progress.reach,
            execution=run.execution(StateFile(directory, share=_STATE_SHARE)),
        )
        tunable.write(directory)
        write_json(directory / _FILE, asdict(found))
        moved = tuned_plans(run, plans, quantized, directory)
        for block in range(run.model.blocks):
            remeasure(run, block, moved, rows, calibrated / RECORDS, directory, every=True)

    return Stage(
        name="tune",
        unit="step",
        total=tuning.steps,
        inputs={"upstream": upstream, "policy": run.policy_inputs(), "seed": run.spec.calibration.seed},
        produce=produce,
        resumable=True,
    )


def read_tuning(directory: Path) -> dict[str, Any]:
    """The losses of a finished tuning: ``start_loss``, ``best_loss``, ``best_step`` and ``curve``."""
    found: dict[str, Any] = read_json(directory / _FILE)
    return found


def tuned_plans(run: Run, plans: Plans, quantized: Path, tuned: Path) -> dict[str, SitePlan]:
    """``plans`` with the diagonals that the tuned norms have: a norm that grew divides its site's input by less."""
    found = dict(plans)
    for block in sorted({site.block for site in run.sites}):
        before, after = (load_file(block_path(directory, block)) for directory in (quantized, tuned))
        for site in run.sites:
            if site.block != block or site.kind is not ProducerKind.NORM_WEIGHT:
                continue
            was_D, is_D = (state[f"{site.producer}.weight"].double() + site.norm_offset for state in (before, after))
            # A channel that is always zero stays so.
            ratio_D = torch.where(is_D == 0, torch.ones_like(is_D), was_D / is_D)
            plan = found[site.name]
            scales_D = ratio_D if plan.scales_D is None else plan.scales_D.double().cpu() * ratio_D
            found[site.name] = replace(plan, scales_D=scales_D.float())
    return found


@torch.no_grad()
def _original(run: Run, windows: Windows) -> Predictor:
    """The original model's predictions, from its last hidden states, which are computed once, block by block."""
    model = StreamedModel(run.dense, device=run.model.device)
    batches = [window.ids_ST for window in windows.split(1)]
    hidden_states = HiddenStates(model, batches, place=run.execution().place(model.device))
    for block in range(model.blocks):
        with model.block(block) as layer:
            for index in range(len(batches)):
                output = layer(hidden_states.hidden(index), **hidden_states.arguments(block, index))
                hidden_states.put(index, output[0] if isinstance(output, tuple) else output)
    return lambda index, _: model.leave(hidden_states.hidden(index))


@dataclass
class _Tunable:
    """The rounded model in memory, with its scales and norms as parameters."""

    run: Run
    plans: Plans
    quantized: Path
    linears: dict[str, TunableLinear] = field(default_factory=dict)
    shared: list[SharedInput] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model: nn.Module = StreamedModel(self.run.source, device=self.run.model.device).whole()
        exported = block_linears(self.run, self.plans)
        inputs = self._inputs()
        for block in range(self.run.model.blocks):
            stored = load_file(block_path(self.quantized, block), device=str(self.run.model.device))
            dense = unpacked_state(stored, exported[block])
            for name in exported[block]:
                self._replace(name, dense, stored.get(f"{name}.weight_scale"), inputs[name])
            self._assign({key: value for key, value in dense.items() if not key.endswith(".input_global_scale")})
        architecture = self.run.model.architecture
        self.norms = TunableNorms(self.model, f"{architecture.blocks}.", architecture.norm_offset)

    def parameters(self, tuning: Tuning) -> list[nn.Parameter]:
        """What is learned, in an order that does not change."""
        scales = [each.theta for _, each in learned_scales(self.linears)] if "scales" in tuning.learn else []
        return scales + (self.norms.parameters() if "norms" in tuning.learn else [])

    def predict(self, _index: int, window: Windows) -> Tensor:
        """The logits [1, T, V]."""
        # The inputs of the window before belong to its graph.
        forget_inputs(self.shared)
        logits: Tensor = self.model(window.ids_ST, use_cache=False).logits
        return logits

    def write(self, directory: Path) -> None:
        """Write the files of ``quantize`` again, with what was learned."""
        changed: dict[str, Tensor] = self.norms.weights()
        changed |= {f"{name}.weight_scale": each.stored() for name, each in learned_scales(self.linears)}
        names = [block_path(self.quantized, block).name for block in range(self.run.model.blocks)]
        for name in (*names, ENDS):
            stored = load_file(self.quantized / name)
            tensors = {key: changed[key].to(value).cpu() if key in changed else value for key, value in stored.items()}
            with atomic_write(directory / name) as temporary:
                save_file({key: value.contiguous() for key, value in tensors.items()}, temporary)

    def _inputs(self) -> dict[str, SharedInput]:
        """The rounder of each linear's input. Diagonals and permutations are fused already."""
        found: dict[str, SharedInput] = {}
        for site in self.run.sites:
            plan = replace(self.plans[site.name].to(self.run.model.device), scales_D=None, permutation_D=None)
            shared = SharedInput(partial(plan_inputs, plan=plan, quantization=self.run.settings[site.name]))
            self.shared.append(shared)
            found |= dict.fromkeys(site.readers, shared)
        return found

    def _replace(self, name: str, dense: dict[str, Tensor], scale: Tensor | None, shared: SharedInput) -> None:
        """Put a tunable linear in the place of ``name``, and take its tensors out of ``dense``."""
        weight_OI, bias_O = dense.pop(f"{name}.weight").float(), dense.pop(f"{name}.bias", None)
        linear = TunableLinear(weight_OI, None if bias_O is None else bias_O.float(), scale, shared)
        self.model.set_submodule(name, linear)
        self.linears[name] = linear

    def _assign(self, state: Mapping[str, Tensor]) -> None:
        for key, value in state.items():
            self.model.get_parameter(key).data = value.to(self.run.model.dtype)
