"""One POST to the server of a tenant, which must not reach the operator's own network through this service.

The name is resolved at delivery, every address is checked, and the connection goes to a checked address. TLS still
verifies the name. Redirects and proxies from the environment are not followed, and each message has a connection of its
own. The deadline is for the whole attempt, not for each read. At most 64 KB of the answer are read.
"""

import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpcore

from jobs.kit.errors import InvalidRequest
from jobs.webhooks.addresses import AddressPolicy
from jobs.webhooks.urls import Target, read_url
from worker.webhooks.resolving import Resolver

MAX_ANSWER_BYTES: Final = 64 << 10

_ADDRESSES_TRIED: Final = 4
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


class Undeliverable(Exception):
    """No answer came. The text is for the tenant: it contains no address and nothing that was received."""


@dataclass(frozen=True)
class Answer:
    """The receiver's answer: its status, and ``Retry-After`` if present. The body is read and dropped."""

    status: int
    retry_after: str | None


class Messenger:
    """Posts messages. Can be used from several threads at once."""

    def __init__(
        self,
        *,
        policy: AddressPolicy,
        resolve: Resolver,
        timeout_seconds: float,
        allow_http: bool = False,
        ca_file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises: OSError, ssl.SSLError: ``ca_file`` can not be read, or holds no certificate."""
        self._policy = policy
        self._resolve = resolve
        self._timeout_seconds = timeout_seconds
        self._allow_http = allow_http
        self._clock = clock
        self._tls = httpcore.default_ssl_context()
        if ca_file is not None:
            self._tls.load_verify_locations(ca_file)

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Post ``body`` and return the receiver's answer.

        Raises:
            Undeliverable: the URL or one of its addresses is not allowed, or no status came in time.
        """
        try:
            target = read_url(url, self._policy, allow_http=self._allow_http)
            return self._exchange(target, headers, body)
        except InvalidRequest as error:
            raise Undeliverable(f"Not sent: {error.detail}") from None
        except (httpcore.TimeoutException, TimeoutError):
            raise Undeliverable(f"No answer within {self._timeout_seconds:g} seconds.") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise Undeliverable(_told(error)) from None

    def _exchange(self, target: Target, headers: Mapping[str, str], body: bytes) -> Answer:
        deadline = _Deadline(self._clock, self._timeout_seconds)
        backend = _CheckedBackend(self._policy, self._resolve, deadline)
        url = httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        sent = {"Host": _host_header(target), "Accept-Encoding": "identity", "Connection": "close", **headers}
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout_seconds)
        with (
            httpcore.ConnectionPool(self._tls, max_connections=1, network_backend=backend) as pool,
            pool.stream(
                "POST", url, headers=list(sent.items()), content=body, extensions={"timeout": timeouts}
            ) as response,
        ):
            answer = Answer(response.status, _header(response, b"retry-after"))
            _drain(response)
        return answer


class _Deadline:
    """The time limit of a whole attempt."""

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self._clock = clock
        self._at = clock() + seconds

    def left(self) -> float:
        """Return the seconds that are left. Raises: TimeoutError: none are left."""
        left = self._at - self._clock()
        if left <= 0:
            raise TimeoutError
        return left


class _CheckedBackend(httpcore.NetworkBackend):
    """Connects to addresses that the policy permits; a name with one forbidden address is refused as a whole."""

    def __init__(self, policy: AddressPolicy, resolve: Resolver, deadline: _Deadline) -> None:
        self._policy = policy
        self._resolve = resolve
        self._deadline = deadline
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline is what counts
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to a checked address of ``host``.

        Raises: Undeliverable, httpcore.ConnectError, httpcore.ConnectTimeout, TimeoutError.
        """
        try:
            addresses = self._resolve(host, port, self._deadline.left())
        except TimeoutError:
            raise
        except (OSError, UnicodeError):
            raise Undeliverable("The host's name can not be resolved.") from None
        if not addresses or not all(self._policy.permits(address) for address in addresses):
            raise Undeliverable(
                "Not sent: the host's name leads to a private, local or reserved address. Every address that it "
                "resolves to has to be public, or allowed by the operator's QUANTRY_WEBHOOK_ALLOWED_NETWORKS or "
                "QUANTRY_WEBHOOK_ALLOW_PRIVATE."
            )
        # A name may have any number of addresses.
        tried = addresses[:_ADDRESSES_TRIED]
        for remaining, address in zip(range(len(tried), 1, -1), tried, strict=False):
            try:
                return self._connect(str(address), port, 1 / remaining, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return self._connect(str(tried[-1]), port, 1.0, local_address, socket_options)

    def _connect(
        self, address: str, port: int, share: float, local_address: str | None, options: Iterable[Any] | None
    ) -> httpcore.NetworkStream:
        stream = self._sockets.connect_tcp(
            address,
            port,
            # A share of the time for each address, so that one that hangs leaves time for the others.
            timeout=self._deadline.left() * share,
            local_address=local_address,
            socket_options=options,
        )
        return _BoundedStream(stream, self._deadline)


class _BoundedStream(httpcore.NetworkStream):
    """A connection that ends at the deadline, and from which at most 64 KB are read."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline
        self._allowance = MAX_ANSWER_BYTES

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the deadline is what counts
        """Read up to the rest of the 64 KB. Raises: httpcore.ReadError: the answer is longer."""
        if self._allowance == 0:
            raise httpcore.ReadError("the answer is too long")
        data = self._stream.read(min(max_bytes, self._allowance), self._deadline.left())
        self._allowance -= len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - the deadline is what counts
        """Send all bytes of ``buffer``."""
        self._stream.write(buffer, self._deadline.left())

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - the deadline is what counts
    ) -> httpcore.NetworkStream:
        """The same connection under TLS; ``server_hostname`` is the URL's host, never the address."""
        secured = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left())
        return _BoundedStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """Return information of the connection itself."""
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()


def _drain(response: httpcore.Response) -> None:
    """Read the body, so that the receiver can finish. Errors are ignored, because the status has already arrived."""
    try:
        for _ in response.iter_stream():
            pass
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError):
        return


def _host_header(target: Target) -> str:
    host = f"[{target.host}]" if ":" in target.host else target.host
    return host if target.port == _DEFAULT_PORTS[target.scheme] else f"{host}:{target.port}"


def _header(response: httpcore.Response, name: bytes) -> str | None:
    values = [value for key, value in response.headers if key.lower() == name]
    return values[0].decode("latin-1") if values else None


def _told(error: BaseException) -> str:
    # httpcore wraps the error of the TLS library in its own, so the chain is searched for it.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"The certificate was not accepted: {cause.verify_message}."
        if isinstance(cause, ssl.SSLError):
            return "The TLS handshake failed."
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpcore.ConnectError):
        return "The connection was refused, or the network does not lead there."
    if isinstance(error, httpcore.ProtocolError):
        return "What came was not an answer in HTTP/1.1."
    return "The connection broke before the answer."
