"""Ways to die inside a stage, and the work that was done until then. As a program: runs that die by SIGKILL."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from quant_engine.models import StreamedModel
from quant_engine.policy import Policy
from quant_engine.training.cayley import CayleySGD
from tests.integration.quant_engine.runs import Killed, Killer, file_hashes, policy_of, run_policy, small

_DIAGONALS: Final = {"search": {"alpha": [0.4, 0.5], "scope": "per_layer"}, "targets": ["down_proj", "o_proj"]}
POLICIES: Final[dict[str, Policy]] = {
    "blocks": policy_of(
        preset="best-w4a4",
        training={"kind": "block", "steps": 2, "batch_samples": 2, "inputs": "quantized"},
        weights={"rounding": "gptq", "gptq": {"correction": 0.5}},
    ),
    "rotation": policy_of(preset="spinquant-w4a4", training={"kind": "rotation", "steps": 3, "batch_samples": 2}),
    "scales": policy_of(preset="smoothrot-w4a4", training={"steps": 2, "scope": "per_layer"}, **_DIAGONALS),
}
"""What is trained in them; the stages of ``blocks`` take the samples through the blocks, those of ``scales`` work site
by site."""


SPEC: Final = small(perplexity=True)


def cut_batches(patch: pytest.MonkeyPatch) -> None:
    """Let so little text be several batches in each stage, and two passes of an evaluation, which keeps every state."""
    patch.setattr("quant_engine.calibration.capture.BATCH_TOKENS", 64)
    patch.setattr("quant_engine.stages.sample_streams._BATCH_TOKENS", 64)
    patch.setattr("quant_engine.evaluation.perplexity._BATCH_TOKENS", 32)
    patch.setattr("quant_engine.evaluation.perplexity.PASS_TOKENS", 64)
    patch.setattr("quant_engine.stages.evaluate.STATE_SHARE", None)


@dataclass
class Work:
    """What was computed, as it happens; ``fatal`` kills at the forward of that number.

    Attributes:
        forwards: the block of each forward of a decoder layer, and ``batches`` how many windows it was given.
        steps: of the optimizer of rotations.
    """

    forwards: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    steps: int = 0
    fatal: int | None = None

    def forward(self, block: int, windows: int) -> None:
        """A decoder layer begins to compute."""
        self.forwards.append(block)
        self.batches.append(windows)
        if len(self.forwards) == self.fatal:
            raise Killed


def watch(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Count the decoder layers' forwards and the rotations' steps from now on."""
    work = Work()
    block, step = StreamedModel.block, CayleySGD.step

    @contextmanager
    def watched(self: StreamedModel, index: int, *arguments: Any) -> Iterator[torch.nn.Module]:
        with block(self, index, *arguments) as layer:
            layer.register_forward_pre_hook(lambda _, arguments: work.forward(index, len(arguments[0])))
            yield layer

    def stepped(self: CayleySGD) -> float | None:
        work.steps += 1
        return step(self)

    monkeypatch.setattr(StreamedModel, "block", watched)
    monkeypatch.setattr(CayleySGD, "step", stepped)
    return work


def die_at_renames(monkeypatch: pytest.MonkeyPatch, below: Path) -> Iterator[int]:
    """Each attempt dies one rename later than the one before, before it or behind it in turn, ``below`` a directory.

    Yields the attempt's number; the caller runs it. Ends when an attempt had not so many renames to make.
    """
    replace, seen = Path.replace, 0

    def fatal(path: Path, target: Path) -> Path:
        nonlocal seen
        if not path.is_relative_to(below):
            return replace(path, target)
        seen += 1
        if seen == attempt and attempt % 2:
            raise Killed
        moved = replace(path, target)
        if seen == attempt:
            raise Killed
        return moved

    monkeypatch.setattr(Path, "replace", fatal)
    for attempt in range(1, 1000):
        seen = 0
        yield attempt
        if seen < attempt:
            return


def stage_files(out: Path, stage: str) -> dict[str, str]:
    """What a finished stage left, by name and SHA-256."""
    return file_hashes(out / "work" / stage)


class _Suicide(Killer):
    def _die_at(self, name: str, done: int) -> None:
        if (name, done) == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def _run_to_its_death(model: Path, policy: str, out: Path, stage: str, done: int) -> int:
    """A run in a process of its own that is killed there; the signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        run_policy(model, POLICIES[policy], out, _Suicide(stage, done), **SPEC)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(model: str, out: str, threads: str, plans: str) -> None:
    """For each [policy, [[stage, done], ...]] run until each of these deaths in turn; prints how each ended.

    Nothing is computed here, so that no thread is lost in the forks.
    """
    torch.set_num_threads(int(threads))
    with pytest.MonkeyPatch.context() as patch:
        cut_batches(patch)
        ends = [
            [_run_to_its_death(Path(model), policy, Path(out) / policy, stage, done) for stage, done in deaths]
            for policy, deaths in json.loads(plans)
        ]
    print(json.dumps(ends))  # noqa: T201  # the program's answer


if __name__ == "__main__":
    main(*sys.argv[1:])
