"""Networks, as ``QUANTRY_WEBHOOK_ALLOWED_NETWORKS`` lists them."""

from ipaddress import IPv4Network, IPv6Network, ip_network

Network = IPv4Network | IPv6Network


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks separated by commas.

    Raises:
        ValueError: names the one that is none, or that has bits beyond its prefix.
    """
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
