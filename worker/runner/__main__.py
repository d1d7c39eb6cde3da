"""The runner, the subprocess that computes: ``python -m worker.runner run.json --events-fd N``.

It has no secrets, no network and no database. It reports its progress as messages on the descriptor. Log lines and
tracebacks go to standard error. It exits with 0 after ``result``, and with 1 after ``error``.
"""

import sys

from worker.runner.program import PipeObserver, run_program
from worker.subprocesses.messages import RunFile


def main(arguments: list[str] | None = None) -> int:
    """Run one job as ``run.json`` says."""
    return run_program("worker.runner", _run, arguments)


def _run(run_file: RunFile, observer: PipeObserver) -> None:
    # Imported late: torch takes seconds to load. By now this process dies with its parent and can report a failure.
    import torch  # noqa: PLC0415 — see above

    from quant_engine.pipeline import run  # noqa: PLC0415 — see above

    torch.set_num_threads(run_file.threads)
    run(run_file.spec, work_dir=run_file.work_dir, output_dir=run_file.output_dir, observer=observer)


if __name__ == "__main__":
    sys.exit(main())
