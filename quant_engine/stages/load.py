"""Stage ``load``: check the texts, the model, the disk and the memory, and record what a resumed run has to repeat."""

import shutil
from pathlib import Path
from typing import Any

import psutil
import torch

from quant_engine.calibration import RESERVOIR_TOKENS, record_bytes, split_samples
from quant_engine.checkpoint.copied_files import changed_files
from quant_engine.errors import DiskFull, InsufficientMemory
from quant_engine.model_files import check_companions
from quant_engine.models import hidden_states_bytes
from quant_engine.stages.context.run import Run
from quant_engine.stages.context.statistics import norms_of, quantiles_of
from quant_engine.stages.context.windows import check_texts
from quant_engine.stages.original import check_original
from quant_engine.stages.stage import Stage, StageProgress, read_json, write_json

MODEL_FILE = "model.json"


def load_stage(run: Run) -> Stage:
    """The stage that writes ``model.json``: facts of the model and the number of threads. One unit per block."""

    def produce(directory: Path, progress: StageProgress) -> None:
        check_companions(run.base.files)
        changed_files(run.base.files)  # for its check of generation_config.json by transformers
        check_texts(run)
        check_run_disk(run)
        check_memory(run)
        oracle = check_original(run, directory)
        # Opening a block reads its tensors, so a damaged checkpoint fails here and not in a later stage.
        for block in range(run.model.blocks):
            with run.model.block(block):
                progress.advance()
        write_json(
            directory / MODEL_FILE,
            {
                "threads": torch.get_num_threads(),
                "dtype": str(run.source.dtype),
                "weight_bytes": run.source.weight_bytes,
                "sites": [site.name for site in run.sites],
                "oracle": oracle,
            },
        )

    return Stage(
        name="load",
        unit="block",
        total=run.model.blocks,
        inputs={"model": run.source.fingerprint, "policy": run.policy_inputs()},
        produce=produce,
    )


def recorded_threads(directory: Path) -> int:
    """The number of threads that the first attempt computed with. It decides how sums are split, hence the bits."""
    return int(read_json(directory / MODEL_FILE)["threads"])


def recorded_oracle(directory: Path) -> dict[str, Any]:
    """What the first attempt compared with transformers, and the difference."""
    found: dict[str, Any] = read_json(directory / MODEL_FILE)["oracle"]
    return found


def check_run_disk(run: Run) -> None:
    """Refuse early a run whose files will not fit.

    Raises:
        DiskFull: with the needed and the free bytes.
    """
    kept = _kept_tokens(run)
    statistics = len(quantiles_of(run.spec.policy)) + len(norms_of(run.spec.policy))
    records = sum(record_bytes(site, kept, statistics) for site in run.sites)
    calibration = run.spec.calibration
    tokens = calibration.samples * calibration.sequence_length
    # The older state is removed only after the newer one is complete, so two of them need space at the same time.
    states = 2 * hidden_states_bytes(run.model, tokens, streams=2)
    # Quantized blocks, the tuned ones, and the checkpoint made of them.
    copies = 2 if run.spec.policy.tuning is None else 3
    needed = records + states + copies * run.source.weight_bytes
    free = shutil.disk_usage(run.work_dir).free
    if needed > free:
        raise DiskFull(
            detail=f"The run needs up to {needed:,} bytes of disk; {free:,} are free.",
            hint="Free some space, use fewer samples or shorter sequences, or target fewer layers.",
        )


def check_memory(run: Run) -> None:
    """Refuse early a run whose smallest working set will not fit.

    Raises:
        InsufficientMemory: with the needed and the available bytes.
    """
    calibration = run.spec.calibration
    config = run.model.config
    # Every factor 4 is the size of an fp32 value in bytes.
    hidden = 4 * calibration.samples * calibration.sequence_length * config.hidden_size
    # The tokens of all sites of one block are recorded at the same time.
    most_sites = max(sum(site.features for site in run.sites if site.block == block) for block in _blocks(run))
    block = 4 * sum(value.numel() for value in run.model.empty_block(0).parameters())
    ends = 4 * config.vocab_size * config.hidden_size * (1 if run.model.ties_embeddings else 2)
    streamed = hidden + 4 * most_sites * _kept_tokens(run) + block + ends
    # Tuning holds all blocks at once, and their weights times the factors of their scales in the graph of a step.
    tuned = hidden + 2 * run.model.blocks * block + ends if run.spec.policy.tuning is not None else 0
    available = psutil.virtual_memory().available
    if max(streamed, tuned) > available:
        hint = "Use fewer samples or shorter sequences, or a machine with more memory."
        if streamed <= available:
            hint = 'Set policy.tuning to {"kind": "none"}, or use a machine with more memory.'
        raise InsufficientMemory(
            detail=f"The run needs about {max(streamed, tuned):,} bytes of memory; {available:,} are available.",
            hint=hint,
        )


def _blocks(run: Run) -> set[int]:
    return {site.block for site in run.sites}


def _kept_tokens(run: Run) -> int:
    calibration = run.spec.calibration
    split = split_samples(calibration.samples, calibration.holdout)
    parts = (split.fit, split.validation, split.test)
    return sum(min(part * calibration.sequence_length, RESERVOIR_TOKENS) for part in parts)
