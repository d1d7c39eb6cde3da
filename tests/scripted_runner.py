"""A runner that sends real messages and computes nothing; the name of its model selects its behavior.

It replaces the engine only: it is a real process, with real signals, files and exit codes.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from worker.subprocesses.messages import (
    Error,
    EventWriter,
    LayerCompleted,
    Log,
    Metric,
    Result,
    RunFile,
    StageAdvanced,
    StageFinished,
    StageStarted,
)
from worker.subprocesses.parent_death import die_with_parent
from worker.subprocesses.problems import as_error

STEPS = 12
STEP_SECONDS = 0.15


def layer_row(name: str = "model.layers.0.mlp.down_proj") -> dict[str, Any]:
    """Return a layer row as the engine reports it."""
    numbers = ("error", "error_normalized", "sqnr_db", "cosine", "baseline_error", "gain_percent", "rtn_error")
    described = {"name": name, "block": 0, "role": "down_proj", "scheme": "w4a4", "transform": "smooth_rotation"}
    sizes = {"input_absmax": 3.0, "input_kurtosis": 4.0, "parameters": 10, "bytes": 5}
    return {**described, **dict.fromkeys(numbers, 1.0), **sizes}


def succeed(run: RunFile, events: EventWriter) -> None:
    """Send every kind of message, then write the output."""
    for name in ("load", "calibrate", "train"):
        events.send(StageStarted(name=name, unit="layer", total=2))
        events.send(StageAdvanced(name=name, done=2, total=2))
        events.send(StageFinished(name=name, seconds=0.5, reused=name == "load"))
    events.send(LayerCompleted(row=layer_row()))
    events.send(Metric(name="perplexity", value=12.5))
    events.send(Metric(name="memory.cpu_peak_bytes", value=3e9))
    events.send(Log(message="half way"))
    finish(run, events, {"full_mean_error": 1.5})


def step(run: RunFile, events: EventWriter) -> None:
    """Do slow steps and store each as a file; a later attempt does only the missing ones."""
    events.send(StageStarted(name="train", unit="layer", total=STEPS))
    for number in range(STEPS):
        file = run.work_dir / f"step-{number}"
        if not file.exists():
            time.sleep(STEP_SECONDS)
            file.write_text(str(os.getpid()))
        events.send(StageAdvanced(name="train", done=number + 1, total=STEPS))
    events.send(StageFinished(name="train", seconds=1.0))
    workers = {(run.work_dir / f"step-{number}").read_text() for number in range(STEPS)}
    finish(run, events, {"runners": len(workers)})


def stages(run: RunFile, events: EventWriter) -> None:
    """Reuse the stages that are there; the run fails until a file ``mended`` is beside its attempts."""
    for name in ("load", "calibrate", "train", "select"):
        directory = run.work_dir / name
        reused = directory.is_dir()
        events.send(StageStarted(name=name, unit="layer", total=1))
        directory.mkdir(exist_ok=True)
        events.send(StageFinished(name=name, seconds=0.1, reused=reused))
    (run.work_dir / "quantize.partial").mkdir(exist_ok=True)
    if not (run.work_dir.parents[1] / "mended").exists():
        events.send(Error(code="not_enough_text", category="user", detail="Too short.", hint="Give more."))
        sys.exit(1)
    finish(run, events, {})


def starve(run: RunFile, events: EventWriter) -> None:
    """Have enough memory only for a run with less."""
    if run.spec.low_memory:
        succeed(run, events)
    else:
        famish(run, events)


def famish(_: RunFile, events: EventWriter) -> None:
    """Never have enough memory."""
    events.send(StageStarted(name="calibrate", unit="block", total=1))
    try:
        bytearray(sys.maxsize)
    except MemoryError as error:
        events.send(as_error(error))
    sys.exit(1)


def be_killed(run: RunFile, events: EventWriter) -> None:
    """Die as the kernel kills a process for memory, and count it; with a file ``always`` also in a low-memory run."""
    if run.spec.low_memory and not (run.work_dir.parents[1] / "always").exists():
        succeed(run, events)
        return
    count_a_kill(run)
    os.kill(os.getpid(), signal.SIGKILL)


def bereaved(run: RunFile, events: EventWriter) -> None:
    """Fail as a run does whose own subprocess the kernel has killed: it only knows that something failed."""
    if run.spec.low_memory:
        succeed(run, events)
        return
    count_a_kill(run)
    events.send(Error(code="verification_failed", category="platform", detail="Exit status -9.", hint="Report it."))
    sys.exit(1)


def count_a_kill(run: RunFile) -> None:
    """Raise the count that the kernel raises before it kills for memory."""
    vmstat = run.work_dir.parents[3] / "proc" / "vmstat"
    vmstat.write_text(f"pgfault 1\noom_kill {int(vmstat.read_text().split()[-1]) + 1}\n")


def die(_: RunFile, events: EventWriter) -> None:
    """Die at each attempt."""
    events.send(StageStarted(name="load", unit="block", total=1))
    os.kill(os.getpid(), signal.SIGKILL)


def hang(_: RunFile, events: EventWriter) -> None:
    """Never end, and ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    events.send(StageStarted(name="train", unit="layer", total=1))
    time.sleep(600)


def refuse(_: RunFile, events: EventWriter) -> None:
    """Report an error of the user's."""
    events.send(StageStarted(name="load", unit="block", total=1))
    events.send(Error(code="not_enough_text", category="user", detail="Too short.", hint="Give more."))
    sys.exit(1)


def overflow(_: RunFile, events: EventWriter) -> None:
    """Fill a disk that is really small."""
    try:
        with Path("/dev/full").open("w") as full:
            full.write("x")
    except OSError as error:
        events.send(as_error(error))
    sys.exit(1)


def vanish(_: RunFile, __: EventWriter) -> None:
    """End without a message."""
    sys.exit(3)


def show(run: RunFile, events: EventWriter) -> None:
    """Put this process's environment, arguments and directory into the report."""
    finish(run, events, {}, {"environment": dict(os.environ), "arguments": sys.argv, "directory": str(Path.cwd())})


def malformed(run: RunFile, events: EventWriter) -> None:
    """Send a result without its files."""
    run.output_dir.mkdir(parents=True)
    events.send(Result(payload={}))


def finish(run: RunFile, events: EventWriter, summary: dict[str, Any], report: dict[str, Any] | None = None) -> None:
    """Write the output as the engine does."""
    (run.output_dir / "checkpoint").mkdir(parents=True)
    (run.output_dir / "checkpoint" / "config.json").write_text("{}")
    report = report or {"layers": [], "model": {"id": run.spec.model_id, "revision": run.spec.revision}}
    for name, content in (("summary", summary), ("report", report), ("layers", [layer_row()])):
        (run.output_dir / f"{name}.json").write_text(json.dumps(content))
    events.send(Result(payload={}))


BEHAVIORS = {
    behavior.__name__: behavior
    for behavior in (
        *(succeed, step, stages, die, hang, refuse, overflow, vanish, show, malformed),
        *(starve, famish, be_killed, bereaved),
    )
}


def main() -> None:
    """Run the behavior that the model's name selects."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run_file", type=Path)
    parser.add_argument("--events-fd", type=int, required=True)
    options = parser.parse_args()
    run = RunFile.model_validate_json(options.run_file.read_bytes())
    die_with_parent(run.parent_pid)
    (options.run_file.parent.parent / "runner.pid").write_text(str(os.getpid()))
    BEHAVIORS.get(run.spec.model_dir.name, succeed)(run, EventWriter(options.events_fd))


if __name__ == "__main__":
    main()
