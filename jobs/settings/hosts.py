"""Parsing ``QUANTRY_ALLOWED_HOSTS`` and ``QUANTRY_ALLOWED_ORIGINS``, and the names and origins of requests alike."""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.ASCII)
_AUTHORITY: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/?#\s]+)(?::([0-9]{1,5}))?", re.ASCII)
DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Authority:
    """A host and a port, as a Host header gives them; ``port`` is None where the scheme decides."""

    host: str
    port: int | None


def normal_host(text: str) -> str | None:
    """Return a name or address in one spelling: lower case, no final dot, no brackets. None if it is neither."""
    lowered = text.lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(lowered.removeprefix("[").removesuffix("]")))
    except ValueError:
        return lowered if _NAME.fullmatch(lowered) else None


def parse_authority(text: str) -> Authority | None:
    """Parse ``host``, ``host:port`` or ``[address]:port``. None if it is none of these."""
    found = _AUTHORITY.fullmatch(text.lower())
    host = None if found is None else normal_host(found[1])
    if found is None or host is None or (":" in host) != found[1].startswith("["):
        return None
    return Authority(host, None if found[2] is None else int(found[2]))


def parse_origin(text: str) -> tuple[str, Authority] | None:
    """Parse ``scheme://host`` or ``scheme://host:port``. The port is always set. None for ``null`` and the like."""
    scheme, separator, rest = text.lower().partition("://")
    authority = parse_authority(rest)
    if not separator or scheme not in DEFAULT_PORTS or authority is None:
        return None
    return scheme, Authority(authority.host, authority.port or DEFAULT_PORTS[scheme])


def parse_hosts(text: str) -> tuple[str, ...]:
    """Parse host names, addresses, ``*.suffix`` and ``*``, separated by commas.

    Raises:
        ValueError: an entry is none of these, such as a URL or a name with a port.
    """
    return tuple(_allowed_host(part) for part in _parts(text))


def parse_origins(text: str) -> tuple[str, ...]:
    """Parse origins such as ``https://ui.example.com``, separated by commas; return them as browsers send them.

    Raises:
        ValueError: an entry is no origin.
    """
    return tuple(_allowed_origin(part) for part in _parts(text))


def _parts(text: str) -> Iterator[str]:
    return (part.strip() for part in text.split(",") if part.strip())


def _allowed_host(part: str) -> str:
    if part == "*":
        return part
    suffix = part.startswith("*.")
    host = normal_host(part[2:] if suffix else part)
    if host is None:
        raise ValueError(
            "QUANTRY_ALLOWED_HOSTS must be host names or addresses, separated by commas, without a scheme and without "
            "a port, such as quantry.example.com,*.internal.example.com; * allows every name."
        )
    return f"*.{host}" if suffix else host


def _allowed_origin(part: str) -> str:
    parsed = parse_origin(part)
    if parsed is None:
        raise ValueError(
            "QUANTRY_ALLOWED_ORIGINS must be origins, separated by commas, without a path, such as "
            "https://ui.example.com,http://localhost:3000."
        )
    scheme, authority = parsed
    name = f"[{authority.host}]" if ":" in authority.host else authority.host
    return f"{scheme}://{name}" if authority.port == DEFAULT_PORTS[scheme] else f"{scheme}://{name}:{authority.port}"
