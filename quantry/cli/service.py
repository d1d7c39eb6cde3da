"""``quantry serve``, ``demo``, ``gc``, ``backup`` and ``restore``: the commands that run the service, or parts of it.

They need the extras ``server`` and ``worker``, so their modules are imported after the check for these.
"""

from pathlib import Path
from typing import Annotated, Final

import typer

from quantry.cli.console import err, out
from quantry.service.config import DemoSize, serve_config
from quantry.service.extras import SERVER, WORKER, require_extras
from quantry.service.maintenance import run_module

_INTERRUPTED: Final = 130

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Default QUANTRY_DATA_DIR, or ./var.")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The backup's own directory.")]


def serve(
    host: Annotated[str | None, typer.Option(help="Default QUANTRY_HOST, or 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Default QUANTRY_PORT, or 8000; 0: any free.")
    ] = None,
    data_dir: DataDir = None,
    *,
    demo_model: Annotated[bool, typer.Option(help="Prepare local:smollm2-135m if it is missing.")] = True,
) -> None:
    """Run the whole service on this machine until Ctrl-C."""
    require_extras(SERVER, WORKER)
    from quantry.service.serve import serve as serve_until_stopped  # noqa: PLC0415 - needs the extras

    config = serve_config(host=host, port=port, data_dir=data_dir)
    serve_until_stopped(config, _say, demo_model=demo_model)


def demo(
    samples: Annotated[int, typer.Option(help="Calibration samples of 128 tokens.")] = DemoSize.samples,
    steps: Annotated[int, typer.Option(help="Training steps for each layer.")] = DemoSize.steps,
    perplexity_tokens: Annotated[int, typer.Option(help="Tokens for perplexity.")] = DemoSize.perplexity_tokens,
) -> None:
    """Run one real job on a real model, from start to finish."""
    require_extras(SERVER, WORKER)
    from quantry.service.demo import run_demo  # noqa: PLC0415 - needs the extras

    try:
        run_demo(DemoSize(samples=samples, steps=steps, perplexity_tokens=perplexity_tokens), out)
    except KeyboardInterrupt:
        err.print("Interrupted; everything the demo started has been stopped.")
        raise typer.Exit(_INTERRUPTED) from None


def gc(
    data_dir: DataDir = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report what would go, and remove nothing.")] = False,
) -> None:
    """Remove expired data and files that no job needs; workers do this every hour by themselves."""
    _run("jobs.gc", *(["--dry-run"] if dry_run else []), data_dir=data_dir)


def backup(
    directory: Directory,
    data_dir: DataDir = None,
    *,
    files: Annotated[bool, typer.Option(help="With the files of jobs, or only the database and the key.")] = True,
) -> None:
    """Back up jobs, files and key to DIR while the service runs. Another backup to DIR copies only new files."""
    _run("jobs.backup", "make", _absolute(directory), *([] if files else ["--no-files"]), data_dir=data_dir)


def restore(directory: Directory, data_dir: DataDir = None) -> None:
    """Restore the backup in DIR into an empty service, which must not run meanwhile."""
    _run("jobs.backup", "restore", _absolute(directory), data_dir=data_dir)


def _run(module: str, *arguments: str, data_dir: Path | None) -> None:
    require_extras(SERVER)
    code = run_module(module, *arguments, data_dir=data_dir)
    if code != 0:
        # A negative code is the signal that ended the process, and no valid exit status.
        raise typer.Exit(code if code > 0 else 1)


def _absolute(path: Path) -> str:
    return str(path.expanduser().absolute())


def _say(message: str) -> None:
    err.print(message, markup=False)
