"""Runs of the pipeline over tiny models, to the end or to where they are killed, and what they leave."""

import hashlib
import pydoc_data.topics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from quant_engine.checkpoint import ActivationGrid
from quant_engine.checkpoint.verify import compare
from quant_engine.models import StreamedModel
from quant_engine.pipeline import RunResult, run
from quant_engine.policy import Calibration, Evaluation, InlineTexts, Perplexity, Policy, resolve_policy
from quant_engine.stages.calibrate import RECORDS, read_windows
from quant_engine.stages.context.run import Run, prepare_run
from quant_engine.stages.export import CHECKPOINT, gate_grid
from quant_engine.stages.quantize.block_files import block_linears, quantized_reader
from quant_engine.stages.select import read_selection
from quant_engine.stages.train.rotation import read_rotation
from quant_engine.transforms import SitePlan
from quant_engine.windows import Windows
from tests.integration.quant_engine.helpers import RecordingObserver, fixed_ids, run_spec, streamed_logits

TEXT: Final = "\n".join(sorted(pydoc_data.topics.topics.values()))


def small(*, samples: int = 8, perplexity: bool = False) -> dict[str, Any]:
    """The fields of a specification on little text: the built-in one takes a tokenizer longer than a run its stages."""
    measured = Perplexity(dataset=InlineTexts(texts=(TEXT[100_000:104_000],)), tokens=128, sequence_length=32)
    texts = InlineTexts(texts=(TEXT[: 400 * samples],))
    return {
        "calibration": Calibration(dataset=texts, samples=samples, sequence_length=32),
        "evaluation": Evaluation(perplexity=measured if perplexity else None),
    }


def policy_of(**fields: Any) -> Policy:
    """A resolved policy."""
    return resolve_policy(Policy.model_validate(fields))


def run_policy(
    model: Path, policy: Policy, out: Path, observer: RecordingObserver | None = None, **spec: Any
) -> RunResult:
    """A whole run below ``out``."""
    return run(
        run_spec(model, policy, **spec),
        work_dir=out / "work",
        output_dir=out / "output",
        observer=observer or RecordingObserver(),
    )


def file_hashes(directory: Path) -> dict[str, str]:
    """Every file below ``directory`` by what is in it."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


class Killed(BaseException):
    """What a kill looks like from inside."""


class Killer(RecordingObserver):
    """Dies the moment a stage reaches a unit; at 0 it dies as the stage begins."""

    def __init__(self, stage: str, done: int) -> None:
        super().__init__()
        self._at = (stage, done)

    def stage_started(self, name: str, unit: str, total: int) -> None:
        super().stage_started(name, unit, total)
        self._die_at(name, 0)

    def stage_advanced(self, name: str, done: int, total: int) -> None:
        super().stage_advanced(name, done, total)
        self._die_at(name, done)

    def _die_at(self, name: str, done: int) -> None:
        if (name, done) == self._at:
            raise Killed

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The layer rows that were told."""
        return [event[1] for event in self.events if event[0] == "layer"]

    def finished(self, *, reused: bool) -> list[str]:
        """The stages that ended."""
        return [event[1] for event in self.events if event[0] == "finished" and event[2] is reused]


def run_until(stage: str, model: Path, policy: Policy, out: Path, done: int = 0, **spec: Any) -> Killer:
    """A run that is killed there, and what it told until then. Spares the fresh process of the gate."""
    observer = Killer(stage, done)
    with pytest.raises(Killed):
        run_policy(model, policy, out, observer, **spec)
    return observer


@dataclass(frozen=True)
class Left:
    """What a run that came as far as ``verify`` has left: its context, what was chosen, and where its files are."""

    run: Run
    plans: dict[str, SitePlan]
    quantized: Path
    checkpoint: Path
    records: Path

    @property
    def windows(self) -> Windows:
        """The windows [S, T] of the calibration: fit, validation and test samples."""
        return read_windows(self.records.parent)

    def streamed(self, ids_BT: Tensor, grid: ActivationGrid | None = None, *, quantized: Path | None = None) -> Tensor:
        """The quantized model's logits from the quantized blocks, in the checkpoint's own type.

        Without a ``grid`` they are those that the gate compares with.
        """
        model = StreamedModel(self.run.source, dtype=self.run.source.dtype)
        linears = block_linears(self.run, self.plans)
        reader = quantized_reader(quantized or self.quantized, linears, model, grid or gate_grid(linears))
        return streamed_logits(model, ids_BT, *reader)

    def original(self, ids_BT: Tensor) -> Tensor:
        """The original model's logits, in fp32."""
        return streamed_logits(StreamedModel(self.run.dense), ids_BT)


def left_by(model: Path, policy: Policy, out: Path, **spec: Any) -> Left:
    """Opens what :func:`run_until` ``verify`` has left below ``out``."""
    work = out / "work"
    rotated = policy.training is not None and policy.training.kind == "rotation"
    context = prepare_run(
        run_spec(model, policy, **spec),
        work_dir=work,
        observer=RecordingObserver(),
        rotation=read_rotation(work / "train") if rotated else None,
    )
    return Left(
        run=context,
        plans=read_selection(context, work / "select").plans,
        quantized=work / ("quantize" if policy.tuning is None else "tune"),
        checkpoint=work / "export" / CHECKPOINT,
        records=work / "calibrate" / RECORDS,
    )


def gate_difference(left: Left) -> float:
    """max |Δ logits| of the reloaded checkpoint: the gate's own comparison, without its fresh process."""
    ids_BT = fixed_ids()
    reference = left.run.work_dir / "reference.safetensors"
    tensors = {"input_ids": ids_BT, "logits": left.streamed(ids_BT).contiguous()}
    save_file(tensors, reference, metadata={"threads": str(torch.get_num_threads())})
    return compare(left.checkpoint, reference).max_abs_difference
