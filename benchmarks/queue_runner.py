"""A runner that computes nothing: it records its start time, reports one stage, and writes the files of a result.

It uses only the standard library, so that its start is as short as possible.
"""

import time

STARTED_AT = time.time()

import json  # noqa: E402 — after the clock was read
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

COMMAND = (sys.executable, "-P", "-m", "benchmarks.queue_runner")


def main(arguments: list[str]) -> None:
    """Run with the arguments ``RUN_FILE --events-fd N``, as a worker passes them."""
    output = Path(json.loads(Path(arguments[0]).read_bytes())["output_dir"])
    fd = int(arguments[arguments.index("--events-fd") + 1])
    _say(fd, type="stage_started", name="load", unit="block", total=1)
    (output / "checkpoint").mkdir(parents=True)
    (output / "checkpoint" / "config.json").write_text("{}")
    # The parent is the pool process that claimed the job.
    files = {"summary": {"started_at": STARTED_AT, "claimer": os.getppid()}, "report": {"layers": []}, "layers": []}
    for name, content in files.items():
        (output / f"{name}.json").write_text(json.dumps(content))
    _say(fd, type="stage_finished", name="load", seconds=0.0)
    _say(fd, type="result", payload={})


def _say(fd: int, **message: object) -> None:
    os.write(fd, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
