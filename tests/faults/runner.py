"""The harness's runner: steps that are stored as files and resumed, or the behavior in the model's ``behavior.json``.

It writes the runner's messages itself and needs only the standard library. So it starts in a tenth of the time of the
real runner, and hundreds of jobs fit into minutes. A model without ``behavior.json`` goes to the real runner.
"""

import argparse
import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.faults import failpoints
from worker.subprocesses.parent_death import die_with_parent

BEHAVIOR: Final = "behavior.json"
TRACE: Final = "trace"
RESULT: Final = "checkpoint/model.bin"

Say = Callable[..., None]


def chain(job_id: str, steps: int) -> str:
    """Return the digest that a job of so many steps publishes; each step's digest is made from the one before."""
    digest = job_id
    for number in range(steps):
        digest = _link(digest, number)
    return digest


def _link(before: str, number: int) -> str:
    return hashlib.sha256(f"{before}:{number}".encode()).hexdigest()


def steps(run: dict[str, Any], behavior: dict[str, Any], say: Say) -> None:
    """Do slow steps and store each as a file; a later attempt does only the missing ones."""
    work, total = Path(run["work_dir"]), int(behavior["steps"])
    began = time.monotonic()
    say("stage_started", name="train", unit="layer", total=total)
    digest = run["job_id"]
    for number in range(total):
        file = work / f"step-{number}"
        if not file.exists():
            with (work / TRACE).open("a") as trace:
                trace.write(f"{number} {os.getpid()}\n")
            time.sleep(behavior["step_seconds"])
            aside = work / f"draft-{number}"
            aside.write_text(_link(digest, number))
            aside.replace(file)
        digest = file.read_text()
        say("stage_advanced", name="train", done=number + 1, total=total)
    say("stage_finished", name="train", seconds=time.monotonic() - began)
    begun = [line.split() for line in (work / TRACE).read_text().splitlines()]
    summary = {"steps": total, "begun": len(begun), "runners": len({pid for _, pid in begun})}
    _finish(run, digest, summary, say)


def poison(_: dict[str, Any], __: dict[str, Any], say: Say) -> None:
    """Kill the process at each attempt."""
    say("stage_started", name="load", unit="block", total=1)
    os.kill(os.getpid(), signal.SIGKILL)


def memory(run: dict[str, Any], behavior: dict[str, Any], say: Say) -> None:
    """Run out of memory for real (RLIMIT_AS), except in a run with less memory."""
    if run["spec"]["low_memory"]:
        steps(run, behavior, say)
        return
    say("stage_started", name="load", unit="block", total=1)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))
    try:
        bytearray(1 << 29)
    except MemoryError:
        hint = "Use fewer samples."
        say("error", code="insufficient_memory", category="capacity", detail="Out of memory.", hint=hint)
    sys.exit(1)


def disk(_: dict[str, Any], __: dict[str, Any], say: Say) -> None:
    """Fill a disk that is really small."""
    say("stage_started", name="load", unit="block", total=1)
    try:
        with Path("/dev/full").open("w") as full:
            full.write("x")
    except OSError as error:
        say("error", code="disk_full", category="capacity", detail=error.strerror or "", hint="Free space.")
    sys.exit(1)


def _finish(run: dict[str, Any], digest: str, summary: dict[str, Any], say: Say) -> None:
    output = Path(run["output_dir"])
    (output / RESULT).parent.mkdir(parents=True)
    (output / RESULT).write_text(digest)
    report = {"layers": [], "model": {"id": run["spec"]["model_id"], "revision": None}}
    for name, content in (("summary", summary), ("report", report), ("layers", [])):
        (output / f"{name}.json").write_text(json.dumps(content))
    say("result", payload={})


BEHAVIORS: Final = {behavior.__name__: behavior for behavior in (steps, poison, memory, disk)}


def main() -> None:
    """Run the behavior of the model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run_file", type=Path)
    parser.add_argument("--events-fd", type=int, required=True)
    options = parser.parse_args()
    run = json.loads(options.run_file.read_bytes())
    die_with_parent(run["parent_pid"])
    described = Path(run["spec"]["model_dir"]) / BEHAVIOR
    if not described.exists():
        command = [sys.executable, "-P", "-m", "worker.runner", *sys.argv[1:]]
        os.execv(command[0], command)  # noqa: S606 — our own program with our own arguments
    failpoints.install("runner", options.run_file.parents[3])  # <data>/work/<job>/<fence>/run.json

    def say(kind: str, **fields: Any) -> None:
        os.write(options.events_fd, json.dumps({"type": kind, **fields}).encode() + b"\n")

    behavior = json.loads(described.read_bytes())
    BEHAVIORS[behavior["kind"]](run, behavior, say)


if __name__ == "__main__":
    main()
