"""Stage ``train`` of kind ``rotation``: learn R1 and R2 on the whole model, before the calibration.

All later stages calibrate, transform and export the model rotated by them.
"""

from pathlib import Path

from safetensors.torch import load_file, save_file

from quant_engine.atomic_write import atomic_write
from quant_engine.models import ResidualRotation, StreamedModel, model_sites, target_sites
from quant_engine.policy import RotationTraining
from quant_engine.resume_state import SUFFIX, StateFile
from quant_engine.stages.calibrate import kept_windows, training_windows
from quant_engine.stages.context.run import Run
from quant_engine.stages.stage import Stage, StageProgress
from quant_engine.training import train_rotation

_FILE = "rotation.safetensors"


def train_rotation_stage(run: Run, training: RotationTraining, start: ResidualRotation, upstream: str) -> Stage:
    """The stage that writes ``rotation.safetensors``. Its loss needs the whole model in memory.

    One unit per step. A killed attempt loses one step at most, or the evaluation of the loss at the start or the end.
    """

    def produce(directory: Path, progress: StageProgress) -> None:
        # The stored model and not ``run.source``, which is rotated already: the training applies R1 and R2 itself.
        model = StreamedModel(run.dense, device=run.spec.device)
        sites = target_sites(model_sites(model.config, model.architecture), run.spec.policy)
        learned = train_rotation(
            model.whole(),
            sites,
            start,
            # The windows have the suffix of states, so they are removed when the stage is complete.
            training_windows(run, kept_windows(run, directory / f"windows{SUFFIX}")),
            training,
            run.settings,
            online=run.spec.policy.online != "none",
            seed=run.spec.calibration.seed,
            on_step=progress.reach,
            execution=run.execution(StateFile(directory)),
        )
        tensors = {"r1": learned.r1_DD} | ({} if learned.r2_LKK is None else {"r2": learned.r2_LKK})
        with atomic_write(directory / _FILE) as temporary:
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)

    return Stage(
        name="train",
        unit="step",
        total=training.steps,
        inputs={
            "upstream": upstream,
            "policy": run.policy_inputs(),
            "calibration": run.spec.calibration.model_dump(mode="json"),
        },
        produce=produce,
        resumable=True,
    )


def read_rotation(directory: Path) -> ResidualRotation:
    """Read the learned rotations."""
    tensors = load_file(directory / _FILE)
    return ResidualRotation(r1_DD=tensors["r1"], r2_LKK=tensors.get("r2"))
