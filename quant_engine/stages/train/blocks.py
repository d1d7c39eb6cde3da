"""Stage ``train`` of kind ``block``: every block's transforms learned together, block by block and file by file.

Streams the fit and the validation samples; a block's targets are the original block's outputs, its inputs the
original's too, or what the quantized blocks before it give, rounded to nearest under the transforms learned for them.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quant_engine.calibration import split_samples
from quant_engine.models import Site
from quant_engine.policy import BlockTraining
from quant_engine.resume_state import StateFile
from quant_engine.stages.calibrate import RECORDS, read_windows, training_windows
from quant_engine.stages.context.run import Run
from quant_engine.stages.open_site import OpenSite
from quant_engine.stages.plan_files import PlanReader, plan_path, read_plan, write_plan
from quant_engine.stages.sample_streams import ORIGINAL, QUANTIZED, Streams, open_block
from quant_engine.stages.stage import Stage, StageProgress, read_json, write_json
from quant_engine.training import BlockBatch, BlockUnderTraining, train_block
from quant_engine.training.learnable import quantized_site
from quant_engine.training.readers import QuantizedSite
from quant_engine.transforms import SitePlan


def train_blocks_stage(run: Run, training: BlockTraining, calibrated: Path, found: PlanReader, upstream: str) -> Stage:
    """Writes a plan for each site and ``<block>.curve.json``. One unit per block that has sites.

    Args:
        calibrated: the directory of ``calibrate``.
        found: the plan that a search settled on.
    """
    blocks = sorted({site.block for site in run.sites})

    def produce(directory: Path, progress: StageProgress) -> None:
        windows_ST = training_windows(run, read_windows(calibrated))
        streams = Streams(
            run.model,
            windows_ST,
            quantized=training.inputs == "quantized",
            batch_samples=1,
            execution=run.execution(StateFile(directory)),
        )
        if streams.first:
            progress.reach(sum(block < streams.first for block in blocks))
        for block in range(streams.first, max(blocks) + 1):
            sites = [site for site in run.sites if site.block == block]
            _pass_block(run, training, block, sites, streams, calibrated / RECORDS, found, directory)
            streams.keep(block + 1, last=block == max(blocks))
            if sites:
                progress.advance()

    return Stage(
        name="train",
        unit="block",
        total=len(blocks),
        inputs={"upstream": upstream, "policy": run.policy_inputs(), "seed": run.spec.calibration.seed},
        produce=produce,
        resumable=True,
    )


def _pass_block(
    run: Run,
    training: BlockTraining,
    block: int,
    sites: list[Site],
    streams: Streams,
    records: Path,
    found: PlanReader,
    directory: Path,
) -> None:
    """Train the block unless a killed attempt did, and take the streams through it."""
    hidden_states = streams.hidden_states
    with open_block(run, streams, block) as opened:
        targets = [opened.original_output(batch).to(hidden_states.place) for batch in range(len(hidden_states))]
        if sites and not all(plan_path(directory, site).is_file() for site in sites):
            inputs = hidden_states.batches(QUANTIZED if streams.follows_quantized else ORIGINAL)
            batches = [
                BlockBatch(inputs_BTD=inputs[i], targets_BTD=targets[i], arguments=hidden_states.arguments(block, i))
                for i in range(len(hidden_states))
            ]
            _train(run, training, block, sites, batches, records, found, directory)
        if streams.follows_quantized:
            # All at once: a layer of which only some sites are known can not be computed with.
            opened.unrounded({site.name: _settled(run, site, read_plan(directory, site)) for site in sites})
        opened.advance(targets)


def _train(
    run: Run,
    training: BlockTraining,
    block: int,
    sites: list[Site],
    batches: list[BlockBatch],
    records: Path,
    found: PlanReader,
    directory: Path,
) -> None:
    calibration = run.spec.calibration
    fit = split_samples(calibration.samples, calibration.holdout).fit
    start: dict[str, SitePlan] = {}
    for site in sites:
        site_found, opened = found(site), OpenSite(run, site, records)
        plan = opened.plan(opened.settings.transform) if site_found is None else opened.clipped(site_found)
        start[site.name] = plan
    digest = hashlib.sha256(f"{calibration.seed}:{block}".encode()).digest()
    with run.model.block(block) as layer:
        trained = train_block(
            BlockUnderTraining(
                layer=layer,
                prefix=run.model.architecture.block_prefix(block),
                sites=sites,
                weights={
                    name: w_OI
                    for site in sites
                    for name, w_OI in zip(site.readers, run.site_weights(site), strict=True)
                },
                quantization={site.name: run.settings[site.name] for site in sites},
            ),
            start,
            batches[:fit],
            batches[fit:],
            training,
            seed=int.from_bytes(digest[:6]),
            execution=run.execution(),
        )
    run.observer.metric("train.validation_loss", trained.best_loss)
    curve = [asdict(point) for point in trained.curve]
    numbers = {"start_loss": trained.start_loss, "best_loss": trained.best_loss, "best_step": trained.best_step}
    write_json(directory / f"{block:05d}.curve.json", numbers | {"curve": curve})
    for site in sites:
        write_plan(directory, site, trained.plans[site.name])


def _settled(run: Run, site: Site, plan: SitePlan) -> QuantizedSite:
    """The site under its learned plan, its weights to nearest."""
    return quantized_site(run.site_weights(site), plan.to(run.model.device), run.settings[site.name])


def read_curves(directory: Path) -> dict[str, Any]:
    """Each block's losses, by its number; validation samples, relative to the block's output."""
    return {str(int(path.name.split(".")[0])): read_json(path) for path in sorted(directory.glob("*.curve.json"))}
