"""Parsing ``QUANTRY_WEBHOOK_ALLOWED_NETWORKS``."""

from ipaddress import IPv4Network, IPv6Network, ip_network

Network = IPv4Network | IPv6Network


def parse_networks(text: str) -> tuple[Network, ...]:
    """Parse networks that are separated by commas.

    Raises:
        ValueError: one is no network, or has bits after its prefix; the message names it.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(_network(part) for part in parts)


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError(
            f"must be networks such as 10.1.0.0/16,fd00::/8; {text} is none, or has bits after its prefix"
        ) from None
