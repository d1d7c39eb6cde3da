"""The hash of each preset's policy, as jobs have stored it. It changes only where a preset itself is changed."""

import pytest

from quant_engine.policy import PRESETS, Policy, policy_hash, resolve_policy

# The first sixteen hexadecimal digits.
_STORED = {
    "rtn-w4a4": "86fd3341ba99bcd2",
    "smoothrot-w4a4": "48cf03733b458fdc",
    "quantile-smoothrot-w4a4": "a5df4415291b3dd4",
    "trainable-smoothrot-w4a4": "8f6aee18c67fc988",
    "paper-2606.09927": "cc3b75ae52bc7884",
    "quarot-w4a4": "e6a60ad8c0fdeb04",
    "spinquant-w4a4": "88da7c70686dcc8c",
    "flatquant-w4a4": "1afe05cd5b78e395",
    "wush-w4a4": "aadb32f42d43d59e",
    "duquant-w4a4": "9e5d9f3694e6b43c",
    "omniquant-w4a4": "58c097409b21cf57",
    "smoothquant-w8a8": "fc2059dc82425097",
    "adaptive-w4a4": "03f43f164a800dd9",
    "adaptive-w3a3": "e5eb45cf11f52bbd",
    "best-w4a4": "e7206e60afc194ce",
    "hadamard-w4a4": "0dcf2ead2d80e194",
    "w4a16": "75346f8b19f31b97",
    "w4a16-g128": "2a3577f7a0e744f6",
    "w4a8-fp8": "dafdd2de3945ea8c",
    "w8a8": "941c848688c593a6",
    "fp8": "72c35b2517709228",
    "nvfp4": "f8f3e6752571183a",
    "mxfp4": "ff26a686ecdc60cd",
    "evaluate": "7283942b27dc2f72",
}


def test_every_preset_has_a_stored_hash() -> None:
    assert list(_STORED) == list(PRESETS)


@pytest.mark.parametrize(("name", "digits"), _STORED.items())
def test_a_preset_keeps_the_hash_that_jobs_have_stored(name: str, digits: str) -> None:
    policy = resolve_policy(Policy(preset=name))
    assert policy_hash(policy).startswith(f"sha256:{digits}")
    # The worker reads what the API stored.
    assert policy_hash(Policy.model_validate(policy.model_dump(mode="json"))) == policy_hash(policy)
