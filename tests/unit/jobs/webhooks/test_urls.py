"""The URL of an endpoint: one strict reading, and a clear word about what is wrong."""

import pytest

from jobs.kit.errors import InvalidRequest
from jobs.settings.networks import parse_networks
from jobs.webhooks.addresses import AddressPolicy, address_policy
from jobs.webhooks.urls import MAX_URL, Target, read_url

PUBLIC = AddressPolicy()
PRIVATE = address_policy(allow_private=True, networks=())

GOOD = {
    "https://example.com": Target("https", "example.com", 443, "/"),
    "https://Hooks.Example.COM:8443/a/b?c=%20d&e": Target("https", "hooks.example.com", 8443, "/a/b?c=%20d&e"),
    "HTTPS://example.com?x": Target("https", "example.com", 443, "/?x"),
    "https://8.8.8.8/x": Target("https", "8.8.8.8", 443, "/x"),
    "https://[2606:4700:4700::1111]:444/": Target("https", "2606:4700:4700::1111", 444, "/"),
    "https://xn--bcher-kva.example/@me": Target("https", "xn--bcher-kva.example", 443, "/@me"),
}
BAD = {
    "http://example.com/": "https only",
    "ftp://example.com/": "https only",
    "https://user:pw@example.com/": "user name or a password",
    "https://example.com@127.0.0.1/": "user name or a password",
    "https://example.com/#part": "fragment",
    "https://bücher.example/": "beyond ASCII",
    "https://example。com/": "beyond ASCII",
    "https://example.com:0/": "port",
    "https://example.com:65536/": "port",
    "https://example.com:123456/": "not a URL",
    "https://example.com:/": "not a URL",
    "https:///x": "not a URL",
    "https://": "not a URL",
    "//example.com": "not a URL",
    "example.com": "not a URL",
    "": "not a URL",
    "https://example.com\\@127.0.0.1/": "user name or a password",
    "https://example.com\\.evil.example/": "not a URL",
    "https://example.com/a b": "not a URL",
    "https://example.com/\r\nHost: x": "not a URL",
    "https://exa\tmple.com/": "not a URL",
    " https://example.com/": "not a URL",
    "https://example.com/\n": "not a URL",
    "https://example.com./": "name of the DNS",
    "https://-example.com/": "name of the DNS",
    "https://a..b/": "name of the DNS",
    "https://" + "a" * 64 + ".com/": "name of the DNS",
    "https://localhost/": "local network",
    "https://intranet/": "local network",
    "https://a.localhost/": "local network",
    "https://127.0.0.1/": "private, local or reserved",
    "https://10.0.0.1/": "private, local or reserved",
    "https://169.254.169.254/latest/meta-data": "private, local or reserved",
    "https://[::1]/": "private, local or reserved",
    "https://[::ffff:127.0.0.1]/": "private, local or reserved",
    "https://[::ffff:7f00:1]/": "private, local or reserved",
    "https://[64:ff9b::10.0.0.1]/": "private, local or reserved",
    "https://[fe80::1%25eth0]/": "not a URL",
    "https://[1.2.3.4]/": "brackets",
    "https://[12345::]/": "brackets",
    "https://2130706433/": "in disguise",
    "https://0177.0.0.1/": "in disguise",
    "https://127.1/": "in disguise",
    "https://0x7f.1/": "in disguise",
    "https://0x7f000001/": "in disguise",
    "https://1.2.3.4.5/": "in disguise",
    "https://999.1.1.1/": "in disguise",
    "https://example.com/" + "a" * MAX_URL: "more than 2048",
}


@pytest.mark.parametrize("url", GOOD)
def test_good_urls_are_taken_apart(url: str) -> None:
    assert read_url(url, PUBLIC, allow_http=False) == GOOD[url]


@pytest.mark.parametrize("url", BAD)
def test_bad_urls_are_refused_with_a_reason_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidRequest, match=BAD[url]) as refused:
        read_url(url, PUBLIC, allow_http=False)
    assert refused.value.code == "invalid_webhook_url"
    assert [error.pointer for error in refused.value.errors] == ["/url"]
    assert len(url) < 10 or url not in refused.value.detail


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080/x", "http://localhost/", "https://intranet/", "http://[::1]:1/"]
)
def test_an_operator_can_allow_what_is_near(url: str) -> None:
    read_url(url, PRIVATE, allow_http=True)


@pytest.mark.parametrize("url", ["http://169.254.169.254/", "https://2130706433/", "ftp://127.0.0.1/"])
def test_some_things_stay_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        read_url(url, PRIVATE, allow_http=True)


@pytest.mark.parametrize("url", ["https://10.0.0.1/", "https://printer/", "http://example.org/"])
def test_what_a_setting_would_allow_is_told_which(url: str) -> None:
    policy = address_policy(allow_private=False, networks=())
    with pytest.raises(InvalidRequest, match="QUANTRY_WEBHOOK_ALLOW_PRIVATE=true"):
        read_url(url, policy, allow_http=False)


def test_networks_of_ones_own_do_not_open_plain_http() -> None:
    policy = address_policy(allow_private=False, networks=parse_networks("10.0.0.0/8"))
    assert read_url("https://10.1.1.1/", policy, allow_http=False).host == "10.1.1.1"
    with pytest.raises(InvalidRequest, match="https only"):
        read_url("http://10.1.1.1/", policy, allow_http=False)
