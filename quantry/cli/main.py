"""The ``quantry`` command: serve, demo, submit, watch, cancel, retry, layers, download, publish, credentials,
webhooks, gc, backup, restore."""

import sys

import typer

from quantry.cli.console import err
from quantry.cli.credentials import commands as credential_commands
from quantry.cli.jobs import cancel, download, layers, retry, submit, watch
from quantry.cli.publish import publish
from quantry.cli.service import backup, demo, gc, restore, serve
from quantry.cli.webhooks import commands as webhook_commands
from quantry.errors import QuantryError

app = typer.Typer(
    help="Quantization as a service.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
for command in (serve, demo, submit, watch, cancel, retry, layers, download, publish, gc, backup, restore):
    app.command()(command)
app.add_typer(credential_commands, name="credentials", no_args_is_help=True)
app.add_typer(webhook_commands, name="webhooks", no_args_is_help=True)


def error_line(error: QuantryError) -> str:
    """Return code, reason, fields and remedy of an error in one line (the end of a log may follow)."""
    where = [f"{each.pointer}: {each.detail}" for each in error.errors if each.detail != error.detail]
    remedy = [] if error.hint is None else [error.hint]
    return " ".join([f"error [{error.code}]:", error.detail, *where, *remedy])


def main() -> None:
    """Run the command; a failure is one line on standard error and exit status 1."""
    try:
        app()
    except QuantryError as error:
        _fail(error_line(error))
    except OSError as error:
        _fail(f"error [os_error]: {error}. Check the path, its permissions and the free space.")


def _fail(message: str) -> None:
    err.print(message, markup=False, style="red")
    sys.exit(1)
