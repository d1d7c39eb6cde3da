"""Verification of webhook messages, for receivers: ``verify`` checks that a message is from the service.

This file needs only the standard library, and nothing else of Quantry. So a receiver may copy it.

Source: the Standard Webhooks specification, "Verifying signatures" (standardwebhooks.com).
"""

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

_PREFIX: Final = "whsec_"
_TOLERANCE_SECONDS: Final = 300.0


class WebhookVerificationError(Exception):
    """The message is not from the service, or an old one was sent again. Answer with 400 and ignore it."""


def verify(
    secret: str,
    headers: Mapping[str, str],
    body: bytes | str,
    *,
    tolerance_seconds: float = _TOLERANCE_SECONDS,
    clock: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Check the signature of a message and return it: ``{"type": …, "timestamp": …, "data": {…}}``.

    ``body`` must be the received bytes, not JSON that was parsed and written again. A message can come twice: store its
    ``webhook-id`` header, and ignore a message whose id you have stored.

    Raises:
        WebhookVerificationError: a header is missing, no signature fits, or the time stamp is too far from now.
        ValueError: ``secret`` is not a webhook's secret.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, stamp = given["webhook-id"], given["webhook-timestamp"]
        # After a rotation there are two signatures, one for each secret.
        signatures = given["webhook-signature"].split(" ")
    except KeyError as missing:
        raise WebhookVerificationError(f"The header {missing.args[0]} is missing.") from None
    # The signature is over the bytes of the id, the time stamp and the body.
    raw = body.encode() if isinstance(body, str) else body
    expected = hmac.digest(_key(secret), f"{message_id}.{stamp}.".encode() + raw, hashlib.sha256)
    if not any(_fits(signature, expected) for signature in signatures):
        raise WebhookVerificationError("No signature fits. Check the secret, and that the body is as it was sent.")
    if not (stamp.isascii() and stamp.isdigit()) or abs(clock() - int(stamp)) > tolerance_seconds:
        raise WebhookVerificationError("The time stamp is too far from now. Check this machine's clock.")
    message: dict[str, Any] = json.loads(raw)
    return message


def _fits(signature: str, expected: bytes) -> bool:
    version, _, text = signature.partition(",")
    if version != "v1":
        return False
    try:
        # A comparison in constant time: its duration must not show how many bytes are right.
        return hmac.compare_digest(base64.b64decode(text, validate=True), expected)
    except (binascii.Error, ValueError):
        return False


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ValueError("A webhook's secret is 'whsec_' and base64, as creating or rotating the webhook showed it.")
    return key
