"""Which host names a request may be addressed to.

A page of another site can make its own name lead to this machine (DNS rebinding). Its requests then have that name in
their Host header, and so they are told from those of people who use the service.
"""

import ipaddress
from dataclasses import dataclass
from typing import Self

from jobs.settings import Settings, is_loopback
from jobs.settings.hosts import Authority, normal_host, parse_authority, parse_hosts


@dataclass(frozen=True, kw_only=True)
class HostRule:
    """The allowed names: loopback names always, ``names`` by equality, and names that end in one of ``suffixes``."""

    names: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    everything: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the rule of an installation: QUANTRY_ALLOWED_HOSTS, and QUANTRY_HOST unless it is all addresses."""
        allowed = parse_hosts(settings.allowed_hosts)
        listening = normal_host(settings.host)
        named = {each for each in allowed if not each.startswith("*")}
        if listening is not None and not is_unspecified(listening):
            named.add(listening)
        return cls(
            names=frozenset(named),
            suffixes=tuple(each[1:] for each in allowed if each.startswith("*.")),
            everything="*" in allowed,
        )

    def allows(self, host: str) -> bool:
        """Return whether a request may be addressed to ``host``, which is in its normal spelling."""
        return self.everything or is_loopback(host) or host in self.names or host.endswith(self.suffixes)


def host_of(values: list[str]) -> Authority | None:
    """Return the host that the only Host header names; None if there is none, more than one, or a malformed one."""
    # The server leaves the blanks after a header's value, which do not belong to it.
    return parse_authority(values[0].strip(" \t")) if len(values) == 1 else None


def is_address(host: str) -> bool:
    """Return whether ``host`` is an IP address, to which no page of another site can lead its own name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_unspecified(host: str) -> bool:
    """Return whether ``host`` stands for all addresses of this machine."""
    return is_address(host) and ipaddress.ip_address(host).is_unspecified
