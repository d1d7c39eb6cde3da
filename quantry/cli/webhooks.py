"""``quantry webhooks``: the URLs to which the service sends events. Receivers use :mod:`quantry.webhooks`."""

from itertools import islice
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from quantry.cli.console import Url, err, open_client, out
from quantry.webhook_calls import Delivery, Webhook

commands = typer.Typer(help="URLs that receive a message when a job or a publication ends.")

Id = Annotated[str, typer.Argument(metavar="ID", help="As list shows it.")]


@commands.command()
def add(
    target: Annotated[str, typer.Argument(metavar="URL", help="https, reachable by the service's workers.")],
    event: Annotated[
        list[str] | None, typer.Option(help="Such as job.running; repeatable. Default: ends of jobs and publications.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    url: Url = None,
) -> None:
    """Create a webhook; print its id and its secret."""
    with open_client(url) as client:
        _show_secret(client.webhooks.add(target, events=event or (), description=description))


@commands.command("list")
def list_all(url: Url = None) -> None:
    """List the webhooks, newest first."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("id", "state", "events", "URL"):
        table.add_column(heading, no_wrap=heading == "id", overflow="fold")
    with open_client(url) as client:
        for webhook in client.webhooks.list():
            table.add_row(webhook.id, _state(webhook), " ".join(webhook.events), escape(webhook.url))
    out.print(table)


@commands.command()
def remove(webhook: Id, url: Url = None) -> None:
    """Delete a webhook and its deliveries."""
    with open_client(url) as client:
        client.webhooks.remove(webhook)
    err.print(f"{webhook} is gone.")


@commands.command()
def rotate(webhook: Id, url: Url = None) -> None:
    """Replace the secret. For a while, messages are also signed with the old one, so that none is refused."""
    with open_client(url) as client:
        rotated = client.webhooks.rotate(webhook)
    _show_secret(rotated)
    if rotated.previous_secret_until is not None:
        err.print(
            f"Messages are signed with the old secret too until {rotated.previous_secret_until:%Y-%m-%d %H:%M} UTC."
        )


@commands.command()
def enable(webhook: Id, url: Url = None) -> None:
    """Send messages to it again, after it was disabled."""
    with open_client(url) as client:
        client.webhooks.change(webhook, enabled=True)
    err.print(f"{webhook} is enabled.")


@commands.command()
def disable(webhook: Id, url: Url = None) -> None:
    """Send no messages to it until it is enabled again."""
    with open_client(url) as client:
        client.webhooks.change(webhook, enabled=False)
    err.print(f"{webhook} is disabled.")


@commands.command("test")
def send_test(webhook: Id, url: Url = None) -> None:
    """Send a test message; print its id."""
    with open_client(url) as client:
        delivery = client.webhooks.test(webhook)
    out.print(delivery.id, highlight=False)
    err.print(f"See its result with: quantry webhooks deliveries {webhook}")


@commands.command()
def deliveries(
    webhook: Id,
    status: Annotated[str | None, typer.Option(help="Only those: pending, succeeded or failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    url: Url = None,
) -> None:
    """List the deliveries of its messages, newest first."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("id", "event", "status", "attempts", "last attempt", "next", "answer"):
        table.add_column(heading, no_wrap=heading == "id", overflow="fold")
    with open_client(url) as client:
        for delivery in islice(client.webhooks.deliveries(webhook, status=status), limit):
            table.add_row(*_cells(delivery))
    out.print(table)


@commands.command()
def redeliver(
    webhook: Id, message: Annotated[str, typer.Argument(help="Its id, as deliveries shows it.")], url: Url = None
) -> None:
    """Send a message again, with the same id."""
    with open_client(url) as client:
        client.webhooks.redeliver(webhook, message)
    err.print(f"{message} is sent again.")


def _show_secret(webhook: Webhook) -> None:
    out.print(webhook.id, highlight=False)
    out.print(webhook.secret or "", highlight=False, soft_wrap=True, markup=False)
    err.print("Store the secret where the receiver finds it: it is not shown again.")


def _state(webhook: Webhook) -> str:
    if not webhook.enabled:
        return f"disabled ({escape(webhook.disabled_reason or 'requested')})"
    return "enabled" if webhook.failing_since is None else f"failing since {webhook.failing_since:%Y-%m-%d %H:%M}"


def _cells(delivery: Delivery) -> tuple[str, ...]:
    moments = (delivery.last_attempt_at, delivery.next_attempt_at)
    tried, next_try = ("" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}" for moment in moments)
    answer = delivery.last_error or ("" if delivery.last_status is None else str(delivery.last_status))
    return (delivery.id, delivery.type, delivery.status, str(delivery.attempts), tried, next_try, escape(answer))
