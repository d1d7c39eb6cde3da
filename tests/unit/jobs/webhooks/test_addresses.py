"""Which addresses a message may go to: every form in which a private one can be disguised."""

import socket
from ipaddress import ip_address

import pytest

from jobs.settings.networks import parse_networks
from jobs.webhooks.addresses import PRIVATE, AddressPolicy, address_policy

PUBLIC = ["8.8.8.8", "93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:82a::200e", "::ffff:8.8.8.8"]
FORBIDDEN = {
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "this host": ["0.0.0.0", "0.1.2.3", "::"],  # noqa: S104 — nothing is bound to it
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fd00:ec2::254", "fc00::1", "fec0::1"],
    "carrier-grade": ["100.64.0.1", "100.100.100.200"],
    "link-local": ["169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%1", "2606:4700::1%1"],
    "platform": ["168.63.129.16"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "benchmarks": ["198.18.0.1", "198.19.255.255", "2001:2::1"],
    "assignments": ["192.0.0.1", "192.0.0.9", "192.0.0.10", "192.0.0.170", "2001::1", "2001:20::1"],
    "AS112 and AMT": ["192.31.196.1", "192.175.48.1", "192.52.193.1", "2620:4f:8000::1"],
    "multicast": ["224.0.0.1", "239.255.255.250", "233.252.0.1", "232.1.2.3", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.255", "4000::1", "5f00::1"],
    "v4-mapped": ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1"],
    "v4-compatible": ["::127.0.0.1", "::8.8.8.8"],
    "NAT64": ["64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::8.8.8.8"],
    "6to4": ["2002:7f00:1::1", "2002:a00:1::1", "2002:808:808::1", "192.88.99.1"],
    "Teredo": ["2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "ISATAP": ["2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:10.0.0.1"],
}


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_permitted(text: str) -> None:
    assert AddressPolicy().permits(ip_address(text))


def test_a_public_address_may_be_reached_through_nat64() -> None:
    assert AddressPolicy().permits(ip_address("64:ff9b::8.8.8.8"))


@pytest.mark.parametrize("text", [text for group in FORBIDDEN.values() for text in group])
def test_all_others_are_not(text: str) -> None:
    assert not AddressPolicy().permits(ip_address(text))


def test_is_global_alone_would_not_do() -> None:
    """Why there are lists of ours: Python calls these global."""
    called_global = [text for group in FORBIDDEN.values() for text in group if ip_address(text).is_global]
    assert {"192.88.99.1", "64:ff9b::10.0.0.1", "224.0.0.1", "ff0e::1"} <= set(called_global)


@pytest.mark.parametrize("host", ["2130706433", "0177.0.0.1", "127.1", "0x7f.0.0.1", "0x7f000001", "017700000001"])
def test_what_resolvers_make_of_numbers_is_checked(host: str) -> None:
    entries = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    assert entries
    assert not any(AddressPolicy().permits(ip_address(entry[4][0])) for entry in entries)


def test_an_operator_can_open_private_networks_but_not_the_clouds_metadata() -> None:
    policy = address_policy(allow_private=True, networks=())
    assert policy.allowed == PRIVATE
    for text in ("127.0.0.1", "10.1.2.3", "192.168.0.1", "::1", "fd00::1", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3"):
        assert policy.permits(ip_address(text)), text
    for text in ("169.254.169.254", "fe80::1", "224.0.0.1", "0.0.0.0", "255.255.255.255"):  # noqa: S104 — see above
        assert not policy.permits(ip_address(text)), text


def test_an_operator_can_open_some_networks() -> None:
    policy = address_policy(allow_private=False, networks=parse_networks("10.1.0.0/16, fd00:1::/32,"))
    assert policy.permits(ip_address("10.1.255.1"))
    assert policy.permits(ip_address("::ffff:10.1.255.1"))
    assert policy.permits(ip_address("fd00:1::5"))
    assert policy.permits(ip_address("8.8.8.8"))
    assert not policy.permits(ip_address("10.2.0.1"))
    assert not policy.permits(ip_address("fd00:2::1"))


@pytest.mark.parametrize("text", ["10.0.0.1/8", "ten", "10.0.0.0/33"])
def test_a_wrong_list_of_networks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text.split("/", maxsplit=1)[0]):
        parse_networks(text)
