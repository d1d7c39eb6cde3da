"""Parsing ``QUANTRY_WEBHOOK_ALLOWED_NETWORKS``."""

from ipaddress import IPv4Network, IPv6Network, ip_network

Network = IPv4Network | IPv6Network


def parse_networks(text: str) -> tuple[Network, ...]:
    """Parse networks that are separated by commas.

    Raises:
        ValueError: one is no network, or has bits after its prefix; the message names it.
    """
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
