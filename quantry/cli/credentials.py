"""``quantry credentials``: Hub tokens that the service stores, for gated and private models and for publishing.

A token is read from a file, a pipe or a prompt. No option gives it, because other users of a machine can read command
lines, and shells store them.
"""

import getpass
import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.markup import escape
from rich.table import Table

from quantry.cli.console import Url, err, open_client, out
from quantry.errors import QuantryError

commands = typer.Typer(help="Hub tokens that the service stores. They can be used and removed, not read.")


@commands.command()
def add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    token_file: Annotated[Path | None, typer.Option(help="Holds the token; default: a prompt, or a pipe.")] = None,
    url: Url = None,
) -> None:
    """Store a Hub token; print the id of its credential."""
    token = read_token(token_file)
    with open_client(url) as client:
        credential = client.add_credential(name, token)
    out.print(credential.id, highlight=False)
    err.print(f"Use it with: quantry submit MODEL --credential {credential.id}")


@commands.command("list")
def list_all(url: Url = None) -> None:
    """List the stored credentials, newest first."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("id", "name", "kind", "created", "last used"):
        table.add_column(heading, no_wrap=heading == "id")
    with open_client(url) as client:
        for credential in client.credentials():
            used = credential.last_used_at
            table.add_row(
                credential.id,
                escape(credential.name),
                credential.kind,
                f"{credential.created_at:%Y-%m-%d %H:%M}",
                "never" if used is None else f"{used:%Y-%m-%d %H:%M}",
            )
    out.print(table)


@commands.command()
def rm(credential: Annotated[str, typer.Argument(metavar="ID", help="As list shows it.")], url: Url = None) -> None:
    """Delete a token from the service. Queued jobs that need it will fail."""
    with open_client(url) as client:
        client.delete_credential(credential)
    err.print(f"{credential} is deleted. The token itself stays valid until it is revoked on the Hub.")


def read_token(path: Path | None, stdin: TextIO = sys.stdin) -> str:
    """Read the token from the file, else from standard input: by a prompt at a terminal, or one line of a pipe.

    Raises:
        QuantryError: ``bad_input``, if there is none.
    """
    if path is not None:
        token = path.read_text(encoding="utf-8", errors="replace").strip()
    elif stdin.isatty():
        token = getpass.getpass("Hub token: ").strip()
    else:
        token = stdin.readline().strip()
    if not token:
        raise QuantryError("bad_input", "There is no token.", hint="Name a file with --token-file, or pipe it in.")
    return token
