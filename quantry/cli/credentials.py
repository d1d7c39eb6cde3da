"""``quantry credentials``: Hub tokens that the service keeps, for gated and private models and for publishing.

A token is read from a file, a pipe or a prompt. There is no option for it: other users of a machine can read command
lines, and shells keep them.
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

commands = typer.Typer(help="Hub tokens that the service keeps. They can be used and removed, not read.")


@commands.command()
def add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    token_file: Annotated[Path | None, typer.Option(help="Holds the token; default: a prompt, or a pipe.")] = None,
    url: Url = None,
) -> None:
    """Store a Hub token; its credential's id goes to standard output."""
    token = read_token(token_file)
    with open_client(url) as client:
        credential = client.add_credential(name, token)
    out.print(credential.id, highlight=False)
    err.print(f"Use it with: quantry submit MODEL --credential {credential.id}")


@commands.command("list")
def list_all(url: Url = None) -> None:
    """The stored credentials, newest first."""
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
    """Make the service forget a token. Jobs that wait and need it will fail."""
    with open_client(url) as client:
        client.delete_credential(credential)
    err.print(f"{credential} is gone. The token itself stays valid until it is revoked on the Hub.")


def read_token(path: Path | None, stdin: TextIO = sys.stdin) -> str:
    """The token in the file, or on standard input: asked for at a terminal, one line of a pipe.

    Raises:
        QuantryError: ``bad_input``, when there is none.
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
