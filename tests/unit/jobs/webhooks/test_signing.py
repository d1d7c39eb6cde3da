"""Signatures, against the specification's own example, an independent implementation, and the definition."""

import base64
import hashlib
import hmac
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook
from standardwebhooks.exceptions import WebhookVerificationError

from jobs.webhooks.signing import new_secret, signed_headers
from quantry import webhooks

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 — the specification's example
ID, STAMP, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
NOW = 1_796_000_000


def test_the_specifications_example() -> None:
    assert signed_headers(ID, STAMP, BODY, [SECRET]) == {
        "webhook-id": ID,
        "webhook-timestamp": str(STAMP),
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_secrets_are_fresh_and_as_long_as_the_specification_asks() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    for secret in secrets:
        assert secret.startswith("whsec_")
        assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64


@given(st.binary(min_size=24, max_size=64), st.text(alphabet="abc012_", min_size=1), st.binary(max_size=200))
def test_it_is_the_definition(key: bytes, message_id: str, body: bytes) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    signed = hmac.new(key, b".".join([message_id.encode(), str(STAMP).encode(), body]), hashlib.sha256).digest()
    headers = signed_headers(message_id, STAMP, body, [secret])
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(signed).decode()}"


def test_an_independent_receiver_takes_it_by_the_old_and_by_the_new_secret() -> None:
    old, new, other = new_secret(), new_secret(), new_secret()
    now = int(time.time())  # the independent implementation asks the clock
    headers = signed_headers(ID, now, BODY, [new, old])
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (old, new):
        assert Webhook(secret).verify(BODY, headers) == {"test": 2432232314}
        assert webhooks.verify(secret, headers, BODY, clock=lambda: now) == {"test": 2432232314}
    with pytest.raises(WebhookVerificationError):
        Webhook(other).verify(BODY, headers)
    with pytest.raises(webhooks.WebhookVerificationError, match="No signature fits"):
        webhooks.verify(other, headers, BODY, clock=lambda: now)


def test_our_receiver_takes_what_another_implementation_signed() -> None:

    signature = Webhook(SECRET).sign(ID, datetime.fromtimestamp(NOW, UTC), BODY.decode())
    headers = {"Webhook-Id": ID, "Webhook-Timestamp": str(NOW), "Webhook-Signature": f"v2,x {signature}"}
    assert webhooks.verify(SECRET, headers, BODY.decode(), clock=lambda: NOW) == {"test": 2432232314}


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"webhook-id": "msg_other"}, "No signature fits"),
        ({"webhook-timestamp": str(NOW + 1)}, "No signature fits"),
        ({"webhook-timestamp": "soon"}, "No signature fits"),
        ({"webhook-signature": ""}, "No signature fits"),
        ({"webhook-signature": "v1,"}, "No signature fits"),
        ({"webhook-signature": "v1,ÿ v1a,x v1"}, "No signature fits"),
    ],
)
def test_what_was_altered_is_refused(changed: dict[str, str], match: str) -> None:
    headers = signed_headers(ID, NOW, BODY, [SECRET]) | changed
    with pytest.raises(webhooks.WebhookVerificationError, match=match):
        webhooks.verify(SECRET, headers, BODY, clock=lambda: NOW)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(name: str) -> None:
    headers = signed_headers(ID, NOW, BODY, [SECRET])
    del headers[name]
    with pytest.raises(webhooks.WebhookVerificationError, match=name):
        webhooks.verify(SECRET, headers, BODY, clock=lambda: NOW)


@pytest.mark.parametrize("seconds", [-301, 301])
def test_a_message_from_another_time_is_refused(seconds: int) -> None:
    headers = signed_headers(ID, NOW + seconds, BODY, [SECRET])
    with pytest.raises(webhooks.WebhookVerificationError, match="time stamp"):
        webhooks.verify(SECRET, headers, BODY, clock=lambda: NOW)
    assert webhooks.verify(SECRET, headers, BODY, clock=lambda: NOW, tolerance_seconds=400)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_%%%", "hunter2 hunter2"])
def test_a_secret_that_is_none_is_said_to_be_none(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        webhooks.verify(secret, signed_headers(ID, NOW, BODY, [SECRET]), BODY)
