"""Stage ``train`` of kind ``block``: learn all transforms of a block together, one block after the other.

The fit and the validation samples are streamed through the blocks. A block's targets are the outputs of the original
block on its original inputs. Its inputs are the original ones too, or the outputs of the quantized blocks before it,
which are rounded to nearest under the transforms that were learned for them. If the policy has a selection, it is made
here, among learned transforms.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quant_engine.calibration import split_samples
from quant_engine.models import Site
from quant_engine.policy import BlockTraining
from quant_engine.resume_state import StateFile
from quant_engine.stages.calibrate import RECORDS, read_windows, training_windows
from quant_engine.stages.candidates import choice_path, site_tails
from quant_engine.stages.context.run import Run
from quant_engine.stages.plan_files import PlanReader, plan_path, read_plan, write_plan
from quant_engine.stages.sample_streams import ORIGINAL, QUANTIZED, Streams, open_block
from quant_engine.stages.stage import Stage, StageProgress, read_json, write_json
from quant_engine.stages.train.starts import BlockStarts, Result, best_result, choices
from quant_engine.training import BlockBatch, BlockUnderTraining, Start, TrainedBlock, train_block
from quant_engine.training.learnable import quantized_site
from quant_engine.training.quantized_linears import QuantizedSite


def train_blocks_stage(run: Run, training: BlockTraining, calibrated: Path, found: PlanReader, upstream: str) -> Stage:
    """The stage that writes a plan for each site and ``<block>.curve.json``. One unit per block that has sites.

    Args:
        calibrated: the directory of ``calibrate``.
        found: the plan that a search chose.
    """
    blocks = sorted({site.block for site in run.sites})

    def produce(directory: Path, progress: StageProgress) -> None:
        windows = training_windows(run, read_windows(calibrated))
        streams = Streams(
            run.model,
            windows,
            quantized=training.inputs == "quantized",
            batch_samples=1,  # one sample to a batch, because steps draw their samples one by one
            execution=run.execution(StateFile(directory)),
        )
        starts = BlockStarts(run=run, records=calibrated / RECORDS, found=found, tails=site_tails(run, directory))
        trainer = _Trainer(run=run, training=training, starts=starts, directory=directory)
        if streams.first:
            progress.reach(sum(block < streams.first for block in blocks))
        # Blocks without sites are passed too: the streams have to reach the blocks after them.
        for block in range(streams.first, max(blocks) + 1):
            trainer.pass_block(block, streams)
            streams.keep(block + 1, last=block == max(blocks))
            if block in blocks:
                progress.advance()

    return Stage(
        name="train",
        unit="block",
        total=len(blocks),
        inputs={"upstream": upstream, "policy": run.policy_inputs(), "seed": run.spec.calibration.seed},
        produce=produce,
        resumable=True,
    )


@dataclass(frozen=True, kw_only=True)
class _Trainer:
    """Trains one block at a time, and writes its files into ``directory``."""

    run: Run
    training: BlockTraining
    starts: BlockStarts
    directory: Path

    def pass_block(self, block: int, streams: Streams) -> None:
        """Train the block unless an earlier attempt did, and send the streams through it."""
        sites = [site for site in self.run.sites if site.block == block]
        hidden_states = streams.hidden_states
        with open_block(self.run, streams, block) as opened:
            targets = [opened.original_output(batch).to(hidden_states.place) for batch in range(len(hidden_states))]
            if sites and not all(plan_path(self.directory, site).is_file() for site in sites):
                inputs = hidden_states.batches(QUANTIZED if streams.follows_quantized else ORIGINAL)
                batches = [
                    BlockBatch(
                        inputs_BTD=inputs[i],
                        targets_BTD=targets[i],
                        arguments=hidden_states.arguments(block, i),
                        valid_BT=streams.valid(i).to(targets[i].device),
                    )
                    for i in range(len(hidden_states))
                ]
                trials = self.starts.trials(sites)
                results = [(trial, self._trained(block, sites, trial.starts, batches)) for trial in trials]
                self._write(block, sites, results)
            if streams.follows_quantized:
                # All sites at once: the layer can not compute while only some of its sites are set.
                opened.unrounded({site.name: self._settled(site) for site in sites})
            opened.advance(targets)  # the targets are the original stream's states after this block

    def _trained(
        self, block: int, sites: list[Site], start: dict[str, Start], batches: list[BlockBatch]
    ) -> TrainedBlock:
        run, calibration = self.run, self.run.spec.calibration
        fit = split_samples(calibration.samples, calibration.holdout).fit
        # The seed belongs to the block, so a resumed run draws the same samples.
        digest = hashlib.sha256(f"{calibration.seed}:{block}".encode()).digest()
        linears = {
            name: w_OI for site in sites for name, w_OI in zip(site.readers, run.site_weights(site), strict=True)
        }
        with run.model.block(block) as layer:
            return train_block(
                BlockUnderTraining(
                    layer=layer,
                    prefix=run.model.architecture.block_prefix(block),
                    sites=sites,
                    weights=linears,
                    quantization={site.name: run.settings[site.name] for site in sites},
                ),
                start,
                batches[:fit],
                batches[fit:],
                self.training,
                seed=int.from_bytes(digest[:6]),
                execution=run.execution(),
            )

    def _settled(self, site: Site) -> QuantizedSite:
        """The site under its learned plan, with its weights rounded to nearest."""
        plan = read_plan(self.directory, site).to(self.run.model.device)
        return quantized_site(self.run.site_weights(site), plan, self.run.settings[site.name])

    def _write(self, block: int, sites: list[Site], results: list[Result]) -> None:
        _, trained = best_result(results)
        self.run.observer.metric("train.validation_loss", trained.best_loss)
        curve = [asdict(point) for point in trained.curve]
        numbers = {"start_loss": trained.start_loss, "best_loss": trained.best_loss, "best_step": trained.best_step}
        # Before the plans: the plans mark the block as trained.
        write_json(self.directory / f"{block:05d}.curve.json", numbers | {"curve": curve})
        for name, choice in choices(results).items():
            write_json(choice_path(self.directory, name), choice)
        for site in sites:
            write_plan(self.directory, site, trained.plans[site.name])


def read_curves(directory: Path) -> dict[str, Any]:
    """Read the losses of each block on validation samples, relative to the block's output, by block number."""
    return {str(int(path.name.split(".")[0])): read_json(path) for path in sorted(directory.glob("*.curve.json"))}
