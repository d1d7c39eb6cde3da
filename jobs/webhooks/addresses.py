"""The addresses that a webhook may be sent to.

A name is resolved when a message is delivered. Every address that it resolves to is checked here, and the connection is
made to a checked one. Python's ``is_global`` alone is wrong: it treats multicast, 6to4 relays, and IPv6 addresses that
contain a private IPv4 address (NAT64, 6to4, ISATAP) as global. So an IPv6 address that stands for an IPv4 address is
judged as that address, tunnels are refused, and of the rest only unicast outside IANA's special-purpose registries is
allowed.
"""

from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

from jobs.settings.networks import Network

Address = IPv4Address | IPv6Address

PRIVATE: Final[tuple[Network, ...]] = tuple(
    ip_network(text)
    for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1/128", "fc00::/7")
)
"""What QUANTRY_WEBHOOK_ALLOW_PRIVATE allows. Link-local is never allowed: clouds serve machine credentials there."""

_SPECIAL_V4: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's platform, which only its machines can reach
        "169.254.0.0/16",  # link-local, and the clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments, two of which Python calls global
        "192.0.2.0/24",
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",
    )
)
_UNICAST_V6: Final = IPv6Network("2000::/3")
_SPECIAL_V6: Final = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",
    )
)
_NAT64: Final = IPv6Network("64:ff9b::/96")
_ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})
_LOW_32: Final = 0xFFFF_FFFF


@dataclass(frozen=True)
class AddressPolicy:
    """A policy that permits public addresses and those in ``allowed``."""

    allowed: tuple[Network, ...] = ()

    def permits(self, address: Address) -> bool:
        """Return whether a message may be sent to the address."""
        # A scope names a network interface of this machine, so the address is local.
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            return False
        meant = _meant(address)
        if any(meant.version == network.version and meant in network for network in self.allowed):
            return True
        return _is_public_v4(meant) if isinstance(meant, IPv4Address) else _is_public_v6(meant)


def address_policy(*, allow_private: bool, networks: tuple[Network, ...]) -> AddressPolicy:
    """Return the policy of the operator's settings."""
    return AddressPolicy((*networks, *(PRIVATE if allow_private else ())))


def parse_address(text: str) -> Address | None:
    """Parse an address in its canonical form, without the short and octal forms that resolvers accept; else None."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def _meant(address: Address) -> Address:
    """Return the IPv4 address that a v4-mapped or NAT64 address leads to; other addresses are returned unchanged."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return IPv4Address(int(address) & _LOW_32) if address in _NAT64 else address


def _is_public_v4(address: IPv4Address) -> bool:
    return address.is_global and not any(address in network for network in _SPECIAL_V4)


def _is_public_v6(address: IPv6Address) -> bool:
    if address not in _UNICAST_V6 or not address.is_global or any(address in network for network in _SPECIAL_V6):
        return False
    # An interface id that begins with an ISATAP pattern contains an IPv4 address.
    return int(address) >> 32 & _LOW_32 not in _ISATAP
