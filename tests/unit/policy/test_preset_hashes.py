"""The hash of each preset's policy, as jobs have stored it. It changes only where a preset itself is changed."""

import pytest

from quant_engine.policy import PRESETS, Policy, policy_hash, resolve_policy

# The first sixteen hexadecimal digits.
_STORED = {
    "rtn-w4a4": "86fd3341ba99bcd2f5f251213df05534c4e0a2b4e2d58f9f6aee70526d91d5f5",
    "smoothrot-w4a4": "48cf03733b458fdc5ff8c414599f28d729fcb3d42601e9e6b681e3c25c0d4b97",
    "quantile-smoothrot-w4a4": "a5df4415291b3dd4dd9fb4d46bc86bd06e695a9ba20c6ef8370e419e5df79fd2",
    "trainable-smoothrot-w4a4": "8f6aee18c67fc988fbabb89f39601663a6782ed92649eda2875502c18a8ec0d5",
    "paper-2606.09927": "cc3b75ae52bc7884752e6d136823fe1b5334f4bcc624263e28e1451513b4f9ba",
    "quarot-w4a4": "e6a60ad8c0fdeb042628959a3cf6a9c65c9a5a4a2940720f3376265df6d9211a",
    "spinquant-w4a4": "88da7c70686dcc8c66ff4efa0bf7cb9a68cf477cb80a6af3d11237359c905b1f",
    "flatquant-w4a4": "1afe05cd5b78e39595547d9d410fa2b06028cbe24afe786a7b3a83de8fcf6c31",
    "wush-w4a4": "aadb32f42d43d59e1cfa341cce5431b2ef0ae23ab234bd8e05ea36729dfe8454",
    "duquant-w4a4": "9e5d9f3694e6b43cf6280445c987bde8a7e1a84428ac811966efda22c291ab66",
    "omniquant-w4a4": "58c097409b21cf574131c804a85f7d713d69e507c38932cd49ae226861af9338",
    "smoothquant-w8a8": "fc2059dc8242509782aa60810b207b36189f08b3bda5606dced927ce42bf692e",
    "adaptive-w4a4": "03f43f164a800dd9fde875ac20370b90368f6c10d21752b9274276685b582ae1",
    "adaptive-w3a3": "e5eb45cf11f52bbd4286f37d3c2b5ac402b9ff3015dcf3e64327302316fbdbfc",
    "best-w4a4": "e7206e60afc194ceb5df1eff7b62f74a6e08d1cd6b996f2dd305a24e25dd8bca",
    "hadamard-w4a4": "0dcf2ead2d80e1942ca2e023febac922b36b1b2b876e9895a9d17357fd7a5423",
    "w4a16": "75346f8b19f31b974aae9302c7b19e027865e6cffb7ea66c586f39446eebf4e5",
    "w4a16-g128": "2a3577f7a0e744f6077681322204856e333660ab42078090e78acf51143568ad",
    "w4a8-fp8": "dafdd2de3945ea8c948b7a77cb6bb0d1c6d879d077b98c565753ccbfeb270092",
    "w8a8": "941c848688c593a6dba4f5662e0c1e8e9eb19077a4d8476a6dc8dea3321392ef",
    "fp8": "72c35b2517709228041f7b7f57b76317b5a571d1f450c6870db0f5d363809bab",
    "nvfp4": "f8f3e6752571183a85869168cbc15f2fd6301c069d0dc3c943eb8fc52235f240",
    "mxfp4": "ff26a686ecdc60cd54c5114470466b4f1a3dce647e17eeffeae422deb2eefba0",
    "evaluate": "7283942b27dc2f720e9e79d13b335c5c6a88014c87a7d3aee830b58dfa099d72",
}


def test_every_preset_has_a_stored_hash() -> None:
    assert list(_STORED) == list(PRESETS)


@pytest.mark.parametrize(("name", "digits"), _STORED.items())
def test_a_preset_keeps_the_hash_that_jobs_have_stored(name: str, digits: str) -> None:
    policy = resolve_policy(Policy(preset=name))
    assert policy_hash(policy).startswith(f"sha256:{digits}")
    # The worker reads what the API stored.
    assert policy_hash(Policy.model_validate(policy.model_dump(mode="json"))) == policy_hash(policy)
