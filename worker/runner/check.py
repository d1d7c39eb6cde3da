"""Whether a job can be run, before its weights are downloaded.

``python -m worker.runner.check run.json --events-fd N`` gets a model's directory that has all its files, but nothing of
the weights beyond their headers. Unlike the checks in the worker itself, this one loads the tokenizer and cuts the
texts, in a process whose end is not the worker's.
"""

import sys

from worker.runner.program import PipeObserver, run_program
from worker.subprocesses.messages import RunFile


def main(arguments: list[str] | None = None) -> int:
    """Check one job as ``run.json`` says."""
    return run_program("worker.runner.check", _check, arguments)


def _check(run_file: RunFile, observer: PipeObserver) -> None:
    # Imported late, as in the runner.
    from quant_engine.pipeline import check  # noqa: PLC0415 — see above

    check(run_file.spec, work_dir=run_file.work_dir, observer=observer)


if __name__ == "__main__":
    sys.exit(main())
