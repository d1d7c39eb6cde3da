"""One POST to a stranger: real receivers on loopback, of every kind of ill will."""

import socket
import ssl
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
import trustme

from jobs.settings.networks import parse_networks
from jobs.webhooks.addresses import Address, AddressPolicy, address_policy
from tests.webhook_receiver import Exchange, Receiver, closed_port, receiving
from worker.webhooks.resolving import Resolver, SystemResolver
from worker.webhooks.transport import MAX_ANSWER_BYTES, Answer, Messenger, Undeliverable

LOOPBACK = address_policy(allow_private=True, networks=())
HOST = "hooks.example.com"
TIMEOUT = 0.6
SOON = 8.0
"""Long after the deadline, for a busy machine, and long before what is waited for."""


class Names:
    """A resolver that knows one answer after the other, the last one for good."""

    def __init__(self, *answers: str) -> None:
        self.answers = [tuple(ip_address(text) for text in answer.split()) for answer in answers]
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, timeout_seconds: float) -> tuple[Address, ...]:
        """What is next; neither the port nor the time matters."""
        del port, timeout_seconds
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def messenger(
    resolve: Resolver | None = None,
    *,
    policy: AddressPolicy = LOOPBACK,
    ca_file: Path | None = None,
    http: bool = True,
    timeout: float = 10.0,
) -> Messenger:
    return Messenger(
        policy=policy,
        resolve=resolve or Names("127.0.0.1"),
        timeout_seconds=timeout,
        allow_http=http,
        ca_file=ca_file,
    )


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def tls_for(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def test_a_message_arrives_as_it_was_signed(receiver: Receiver) -> None:
    body = '{"a":"ü"}'.encode()
    answer = messenger().post(receiver.url(HOST), {"webhook-id": "msg_1", "Content-Type": "application/json"}, body)
    assert answer == Answer(200, None)
    [received] = receiver.received
    assert (received.path, received.body) == ("/hooks?from=quantry", body)
    assert received.headers["host"] == f"{HOST}:{receiver.port}"
    assert received.headers["content-length"] == str(len(body))
    assert received.headers["webhook-id"] == "msg_1"
    assert received.headers["accept-encoding"] == "identity"


def test_every_address_of_a_name_is_checked(receiver: Receiver) -> None:
    only_one = AddressPolicy(parse_networks("127.0.0.1/32"))
    resolve = Names("127.0.0.1 127.0.0.2")
    with pytest.raises(Undeliverable, match="private, local or reserved"):
        messenger(resolve, policy=only_one).post(receiver.url(HOST), {}, b"")
    assert receiver.received == []


def test_a_name_that_changes_its_mind_is_asked_once_a_message(receiver: Receiver) -> None:
    only_one = AddressPolicy(parse_networks("127.0.0.1/32"))
    resolve = Names("127.0.0.1", "127.0.0.2")
    with receiving(host="127.0.0.2", port=receiver.port) as inner:
        post = messenger(resolve, policy=only_one).post
        assert post(receiver.url(HOST), {}, b"{}").status == 200
        assert resolve.asked == [HOST]
        with pytest.raises(Undeliverable, match="private, local or reserved"):
            post(receiver.url(HOST), {}, b"{}")
    assert (len(receiver.received), inner.received) == (1, [])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "64:ff9b::7f00:1"])
def test_private_addresses_behind_public_names_are_not_connected_to(receiver: Receiver, address: str) -> None:
    with pytest.raises(Undeliverable, match="private, local or reserved"):
        messenger(Names(address), policy=AddressPolicy()).post(receiver.url(HOST), {}, b"")
    assert receiver.received == []


def test_an_address_as_host_is_checked_too(receiver: Receiver) -> None:
    post = messenger(SystemResolver(), policy=AddressPolicy()).post
    for host in ("127.0.0.1", "2130706433", "0177.0.0.1", "127.1", "localhost"):
        with pytest.raises(Undeliverable, match="Not sent"):
            post(receiver.url(host), {}, b"")
    assert receiver.received == []


def test_plain_http_needs_the_operators_word(receiver: Receiver) -> None:
    with pytest.raises(Undeliverable, match="https only"):
        messenger(http=False).post(receiver.url(), {}, b"")


def test_a_second_address_is_tried_when_nobody_listens_at_the_first(receiver: Receiver) -> None:
    assert messenger(Names("::1 127.0.0.1")).post(receiver.url(HOST), {}, b"").status == 200


def test_redirects_are_answers_and_lead_nowhere(receiver: Receiver) -> None:
    with receiving() as inner:
        receiver.script[:] = [lambda exchange: exchange.answer(302, {"Location": inner.url()})]
        assert messenger().post(receiver.url(), {}, b"").status == 302
    assert inner.received == []


def test_proxies_of_the_environment_are_not_asked(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    assert messenger().post(receiver.url(), {}, b"").status == 200


@pytest.mark.parametrize("status", [200, 204, 400, 410, 429, 500, 503])
def test_the_status_is_told(receiver: Receiver, status: int) -> None:
    receiver.script[:] = [lambda exchange: exchange.answer(status, {"Retry-After": "7"})]
    assert messenger().post(receiver.url(), {}, b"") == Answer(status, "7")


def _never(exchange: Exchange) -> None:
    exchange.hang()


def _drip_headers(exchange: Exchange) -> None:
    exchange.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Long: " + b"x" * 200, 0.1)


def _interim_for_ever(exchange: Exchange) -> None:
    while not exchange.stopping.wait(0.05):
        exchange.raw(b"HTTP/1.1 103 Early Hints\r\n\r\n")


@pytest.mark.parametrize("behavior", [_never, _drip_headers, _interim_for_ever])
def test_the_attempt_as_a_whole_has_a_deadline(receiver: Receiver, behavior: object) -> None:
    receiver.script[:] = [behavior]  # type: ignore[list-item]  # each is one
    began = time.monotonic()
    with pytest.raises(Undeliverable, match=r"No answer within 0\.6 seconds"):
        messenger(timeout=TIMEOUT).post(receiver.url(), {}, b"")
    assert time.monotonic() - began < SOON


def _endless_body(exchange: Exchange) -> None:
    exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\nsome")
    exchange.hang()


def test_a_status_counts_even_if_the_body_never_ends(receiver: Receiver) -> None:
    receiver.script[:] = [_endless_body]
    began = time.monotonic()
    assert messenger(timeout=1.5).post(receiver.url(), {}, b"").status == 200
    assert time.monotonic() - began < SOON


def _huge_body(exchange: Exchange) -> None:
    exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1000000000\r\n\r\n")
    while True:
        exchange.raw(b"x" * 65536)


def test_of_a_huge_body_little_is_read(receiver: Receiver) -> None:
    receiver.script[:] = [_huge_body]
    assert messenger().post(receiver.url(), {}, b"").status == 200
    time.sleep(0.1)
    [exchange] = receiver.exchanges
    assert exchange.sent < MAX_ANSWER_BYTES + (8 << 20), "the sockets' buffers, and no more"


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 200_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_answer_is_none(receiver: Receiver, data: bytes) -> None:
    receiver.script[:] = [lambda exchange: exchange.raw(data)]
    with pytest.raises(Undeliverable):
        messenger().post(receiver.url(), {}, b"")


def test_a_closed_port_is_told() -> None:
    with pytest.raises(Undeliverable, match="refused"):
        messenger().post(f"http://{HOST}:{closed_port()}/", {}, b"")


def test_tls_keeps_to_the_name_while_the_connection_goes_to_the_address(authority: trustme.CA, ca_file: Path) -> None:
    with receiving(tls_for(authority, HOST)) as receiver:
        assert messenger(ca_file=ca_file, http=False).post(receiver.url(HOST), {}, b"{}").status == 200
        assert receiver.server_names == [HOST]
        assert receiver.received[0].headers["host"] == f"{HOST}:{receiver.port}"


def test_a_certificate_of_another_name_is_refused(authority: trustme.CA, ca_file: Path) -> None:
    with receiving(tls_for(authority, "other.example.com", "127.0.0.1")) as receiver:
        with pytest.raises(Undeliverable, match="certificate was not accepted"):
            messenger(ca_file=ca_file).post(receiver.url(HOST), {}, b"{}")
        assert receiver.received == []


def test_a_certificate_of_an_unknown_authority_is_refused(authority: trustme.CA) -> None:
    with receiving(tls_for(authority, HOST)) as receiver:
        with pytest.raises(Undeliverable, match="certificate was not accepted"):
            messenger().post(receiver.url(HOST), {}, b"{}")
        assert receiver.received == []


def test_a_handshake_that_never_ends_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        began = time.monotonic()
        with pytest.raises(Undeliverable, match="No answer within"):
            messenger(timeout=TIMEOUT).post(f"https://{HOST}:{deaf.getsockname()[1]}/", {}, b"")
        assert time.monotonic() - began < SOON


def test_a_server_without_tls_is_told() -> None:
    with receiving() as receiver:
        receiver.scheme = "https"
        with pytest.raises(Undeliverable, match=r"TLS|connection"):
            messenger().post(receiver.url(HOST), {}, b"")


def test_a_resolver_that_hangs_does_not_hold_the_sender() -> None:
    def hang(*_: object, **__: object) -> list[object]:
        time.sleep(30)
        return []

    began = time.monotonic()
    with pytest.raises(Undeliverable, match="No answer within"):
        messenger(SystemResolver(hang), timeout=TIMEOUT).post(f"http://{HOST}/", {}, b"")
    assert time.monotonic() - began < SOON


def test_a_name_that_does_not_exist_is_told() -> None:
    def fail(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(Undeliverable, match="can not be resolved"):
        messenger(SystemResolver(fail)).post(f"http://{HOST}/", {}, b"")
    with pytest.raises(Undeliverable, match="private, local or reserved"):
        messenger(SystemResolver(lambda *_, **__: [])).post(f"http://{HOST}/", {}, b"")
