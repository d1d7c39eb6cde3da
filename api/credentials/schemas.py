"""The request body of ``POST /v1/credentials``."""

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, SecretStr

from quant_engine.policy.fields import Frozen, Name

_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,512}")


def _like_a_token(token: SecretStr) -> SecretStr:
    # The token is sent in an HTTP header: no blank, no line break, nothing beyond ASCII.
    if _TOKEN.fullmatch(token.get_secret_value()) is None:
        raise ValueError("must have 1 to 512 printable ASCII characters without blanks; copy it as the Hub shows it")
    return token


class NewCredential(Frozen):
    """A Hub token to store. It is encrypted, and no response ever contains it."""

    name: Annotated[Name, Field(max_length=64, examples=["mine"])]
    """A name of your own."""
    kind: Literal["hub"]
    """Where the token is valid."""
    token: Annotated[SecretStr, Field(strict=True, examples=["hf_…"]), AfterValidator(_like_a_token)]
    """The token, as the Hub shows it: printable ASCII without blanks, up to 512 characters."""
