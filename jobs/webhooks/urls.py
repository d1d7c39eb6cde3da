"""The URL of a webhook endpoint: one strict parser, for the check at creation and for every delivery.

Such checks are fooled by two parsers that disagree on where the host ends. So there is one parser, and it only accepts
what all parsers read in the same way: ASCII, no user information, no backslash, no fragment.
"""

import re
from dataclasses import dataclass
from typing import Final

from jobs.kit.errors import InvalidRequest
from jobs.webhooks.addresses import Address, AddressPolicy, parse_address

MAX_URL: Final = 2048

_DEFAULT_PORTS: Final = {"https": 443, "http": 80}
_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[A-Za-z0-9/._~!$&'()*+,;=:@%-]*)?(?P<query>\?[A-Za-z0-9/?._~!$&'()*+,;=:@%-]*)?",
    re.ASCII,
)
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
# Resolvers accept IPv4 addresses in hexadecimal, octal or as one number. No top-level domain is a number.
_NUMBER: Final = re.compile(r"0x[0-9a-f]*|[0-9]+", re.ASCII)
_CODE: Final = "invalid_webhook_url"
_ALLOWING: Final = (
    "QUANTRY_WEBHOOK_ALLOWED_NETWORKS lists networks, and QUANTRY_WEBHOOK_ALLOW_PRIVATE=true allows all private ones"
)


@dataclass(frozen=True)
class Target:
    """The destination of a message. ``host``: lower-case name, or address without brackets; ``path`` has the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def address(self) -> Address | None:
        """The address, if the host is one; else None."""
        return parse_address(self.host)


def read_url(url: str, policy: AddressPolicy, *, allow_http: bool) -> Target:
    """Parse a URL that messages may be sent to. A name is not resolved here, because its address may change later.

    Raises:
        InvalidRequest: the message has the fault of ``/url`` and the remedy, and never repeats the URL.
    """
    if len(url) > MAX_URL:
        raise _refused(f"The URL has more than {MAX_URL} characters. Use a shorter one.")
    match = _URL.fullmatch(url)
    if match is None:
        raise _refused(_trouble(url))
    scheme = match["scheme"].lower()
    if scheme not in (("https", "http") if allow_http else ("https",)):
        raise _refused(
            "Webhooks are sent over https only. Use a URL that begins with https://; an operator may allow http with "
            "QUANTRY_WEBHOOK_ALLOW_PRIVATE=true."
        )
    port = int(match["port"]) if match["port"] else _DEFAULT_PORTS[scheme]
    # The pattern allows five digits, which can be more than 65535.
    if not 1 <= port <= 65535:
        raise _refused("The port must be a number from 1 to 65535. Correct it, or leave it out for 443.")
    path = (match["path"] or "/") + (match["query"] or "")
    target = Target(scheme=scheme, host=_host(match["host"].lower()), port=port, path=path)
    _check_host(target, policy)
    return target


def _host(written: str) -> str:
    if not written.startswith("["):
        return written
    address = parse_address(written[1:-1])
    if address is None or address.version != 6:
        raise _refused("The text in brackets is not an IPv6 address. Correct it.")
    return str(address)


def _check_host(target: Target, policy: AddressPolicy) -> None:
    address = target.address
    if address is not None:
        if not policy.permits(address):
            raise _refused(
                "The address is private, local or reserved. Use one that the whole internet can reach, or have the "
                f"operator allow it: {_ALLOWING}."
            )
        return
    labels = target.host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        raise _refused("The host is a number in disguise. Write an IPv4 address as four decimal numbers.")
    if len(target.host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _refused("The host is not a name of the DNS. Correct it; write other alphabets as xn--… labels.")
    # An operator who allows private networks may also use their names.
    local = len(labels) == 1 or labels[-1] == "localhost"
    if local and not policy.allowed:
        raise _refused(
            "The host is a name of the local network. Use one that the whole internet can resolve, or have the "
            f"operator allow it: {_ALLOWING}."
        )


def _trouble(url: str) -> str:
    authority = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    if "@" in authority:
        return "The URL holds a user name or a password. Leave them out; deliveries are signed with the secret instead."
    if "#" in url:
        return "The URL has a fragment, which is never sent. Leave out the '#' and what follows it."
    if not url.isascii():
        return "The URL has characters beyond ASCII. Write the host as xn--… labels, and the path in %-encoding."
    return "This is not a URL that a message can be posted to. Write it as https://host/path."


def _refused(detail: str) -> InvalidRequest:
    return InvalidRequest(detail, pointer="/url", code=_CODE)
