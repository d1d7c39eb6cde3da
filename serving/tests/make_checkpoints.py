"""Make the checkpoints of the tests, and of each what our loader computes.

    python -m serving.tests.make_checkpoints MODEL OUTPUT [NAME …]

``OUTPUT/NAME`` has ``checkpoint`` and ``reference.safetensors``, and is there only when both are complete. The tests
start this beside themselves, so that one core makes checkpoints while the other runs vLLM.
"""

import logging
import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from quant_engine.calibration import (
    ChatRenderer,
    Purpose,
    characters_for,
    dataset_documents,
    evaluation_windows,
    load_tokenizer,
    special_beginning,
    tokenized,
)
from quant_engine.checkpoint import load
from quant_engine.checkpoint.serving_gate import RecordedLinears
from quant_engine.pipeline import RunSpec, run
from quant_engine.policy import BUILT_IN, Calibration, Evaluation, Output, Policy, resolve_policy
from serving.tests.cases import CASES, Case

LENGTH = 128
ROWS = range(5, 4 * LENGTH, 64)
"""The positions whose linears are compared. None is a window's first, whose values are far larger than all others."""


class _Quiet:
    """An observer that keeps nothing."""

    def __getattr__(self, name: str) -> object:
        return lambda *_values, **_named: None


def datasets() -> tuple[Path | None, str]:
    """Return the directory of data sets and the name of one: WikiText-2 where the machine has it, or the built-in."""
    directory = os.environ.get("QUANTRY_DATASETS_DIR")
    if directory and (Path(directory) / "wikitext2").is_dir():
        return Path(directory), "wikitext2"
    return None, BUILT_IN


def input_ids(model_dir: Path, windows: int) -> torch.Tensor:
    """Return token ids [windows, LENGTH] of the text that calibration does not use."""
    directory, name = datasets()
    tokenizer = load_tokenizer(model_dir)
    tokens = windows * LENGTH
    documents = dataset_documents(
        name,
        Purpose.EVALUATION,
        directory,
        chat=ChatRenderer(lambda: tokenizer),
        max_characters=characters_for(tokens),
    )
    cut = tokenized(tokenizer, documents, special_beginning(tokenizer))
    return evaluation_windows(cut, tokens=tokens, sequence_length=LENGTH, special_tokens=())[0].ids_ST


def make(case: Case, model_dir: Path, work: Path) -> Path:
    """Quantize the model, and return the directory of the checkpoint."""
    if case.policy is None:
        return model_dir
    directory, name = datasets()
    spec = RunSpec(
        model_dir=model_dir,
        policy=resolve_policy(Policy.model_validate(case.policy)),
        calibration=Calibration(dataset=name, samples=8, sequence_length=64),
        evaluation=Evaluation(perplexity=None),
        output=Output(),
        datasets_dir=directory,
    )
    made = run(spec, work_dir=work / "work", output_dir=work / "result", observer=_Quiet()).checkpoint_dir
    shutil.rmtree(work / "work")
    if made is None:
        raise RuntimeError("the policy of a case writes no checkpoint")
    return made


@torch.no_grad()
def write_reference(checkpoint: Path, ids_BT: torch.Tensor, path: Path, *, quantized: bool) -> None:
    """Write what our loader makes of the checkpoint, or transformers of the dense model."""
    model = load(checkpoint) if quantized else AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    recorded = RecordedLinears(ROWS)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and hasattr(module, "quantization_scheme"):
            recorded.attach(module, name)
    logprobs = []
    for index, window_T in enumerate(ids_BT.split(4)):
        logits_BTV = model(window_T, use_cache=False).logits.float().log_softmax(-1)
        logprobs.append(logits_BTV[:, :-1].gather(-1, window_T[:, 1:, None])[..., 0])
        if index == 0:
            recorded.stop()
    tensors = {"input_ids": ids_BT, "logprobs": torch.cat(logprobs)}
    save_file({name: each.contiguous() for name, each in (tensors | recorded.tensors).items()}, path)


def main(arguments: list[str]) -> int:
    """Make every checkpoint that is named, or all, one after the other."""
    model_dir, output = Path(arguments[0]), Path(arguments[1])
    logging.disable()
    torch.set_num_threads(1)
    for name in arguments[2:] or CASES:
        case, work = CASES[name], output / f"{name}.making"
        if (output / name).exists():
            continue
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        checkpoint = make(case, model_dir, work)
        reference = work / "reference.safetensors"
        write_reference(checkpoint, input_ids(model_dir, case.windows), reference, quantized=case.policy is not None)
        if case.policy is None:
            (work / "checkpoint").symlink_to(checkpoint.resolve())
        else:
            checkpoint.rename(work / "checkpoint")
        work.rename(output / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
