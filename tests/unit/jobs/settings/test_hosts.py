"""The names and origins that an operator allows: one spelling for each, and a clear word about what is neither."""

import pytest
from pydantic import ValidationError

from jobs.settings import Settings
from jobs.settings.hosts import Authority, parse_authority, parse_hosts, parse_origin, parse_origins


def test_names_are_spelled_in_one_way() -> None:
    assert parse_hosts("") == ()
    assert parse_hosts(" API ,, *.Example.COM. ,[2001:DB8:0::7],192.0.2.7,*") == (
        *("api", "*.example.com", "2001:db8::7", "192.0.2.7", "*"),
    )


def test_origins_are_spelled_as_browsers_send_them() -> None:
    assert parse_origins("HTTPS://UI.example.org:443, http://localhost:3000,http://[::1]:80") == (
        *("https://ui.example.org", "http://localhost:3000", "http://[::1]"),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", Authority("localhost", None)),
        ("LocalHost.:8000", Authority("localhost", 8000)),
        ("[::1]:80", Authority("::1", 80)),
        ("127.0.0.1:80", Authority("127.0.0.1", 80)),
        *((text, None) for text in ("", ":80", "::1", "a:b", "a@b", "a/b", "a b", "a..b", "[a]", "a,b", "a?b", "a:")),
    ],
)
def test_authorities(text: str, expected: Authority | None) -> None:
    assert parse_authority(text) == expected


@pytest.mark.parametrize(
    "text", ["null", "", "localhost", "ftp://a", "http://a/", "http://a/b", "http://", "http://a@b"]
)
def test_what_is_no_origin(text: str) -> None:
    assert parse_origin(text) is None


@pytest.mark.parametrize("text", ["http://a", "a:8000", "a b", "*example.com", "a.*.b", "a/b", "**"])
def test_a_wrong_name_stops_the_start_with_the_name_of_the_setting(text: str) -> None:
    with pytest.raises(ValidationError, match="QUANTRY_ALLOWED_HOSTS must be host names"):
        Settings(allowed_hosts=f"good.example,{text}")


@pytest.mark.parametrize("text", ["a.example", "https://a.example/", "null", "*", "https://*.example"])
def test_a_wrong_origin_stops_the_start_with_the_name_of_the_setting(text: str) -> None:
    with pytest.raises(ValidationError, match="QUANTRY_ALLOWED_ORIGINS must be origins"):
        Settings(allowed_origins=text)
