"""What other readers are told, and what stops them."""

from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from pydantic import ValidationError

from quant_engine.checkpoint import OnlineInput, QuantizedLinear
from quant_engine.checkpoint.config import REFUSAL_MARKER, checkpoint_config, without_refusal_marker
from quant_engine.policy import ActivationQuantization, NumberFormat, WeightQuantization
from quant_engine.transforms.primitives import Dense, Hadamard, Primitive

_DENSE = Dense(matrix_DD=torch.eye(16))


def _config(*online: tuple[Primitive, ...], number_format: NumberFormat = NumberFormat.INT4) -> dict[str, Any]:
    linears = [
        QuantizedLinear(
            name=f"model.layers.{block}.mlp.down_proj",
            weights=WeightQuantization(format=number_format),
            activations=ActivationQuantization(format=number_format),
            online=OnlineInput(primitives=primitives),
        )
        for block, primitives in enumerate(online)
    ]
    return checkpoint_config({"model_type": "llama"}, linears, ["lm_head"], "bfloat16")


@pytest.mark.parametrize("number_format", [NumberFormat.INT4, NumberFormat.FP8])
def test_one_inexpressible_transform_marks_every_group(number_format: NumberFormat) -> None:
    marked = _config((Hadamard(order=16),), (_DENSE,), number_format=number_format)["quantization_config"]
    assert all(group["weights"]["type"].endswith(REFUSAL_MARKER) for group in marked["config_groups"].values())
    assert marked["transform_config"]["config_groups"] == {}
    with pytest.raises(ValidationError, match=REFUSAL_MARKER.strip()):
        QuantizationConfig.model_validate(marked)
    plain = _config((), (), number_format=number_format)["quantization_config"]
    assert without_refusal_marker(marked) == plain == without_refusal_marker(plain)
    QuantizationConfig.model_validate(plain)


@pytest.mark.parametrize(
    ("online", "reach", "profile"),
    [
        (((), ()), "anywhere", "universal"),
        (((Hadamard(order=16),), ()), "hadamard", "rotated"),
        (((Hadamard(order=16), Hadamard(order=8)), ()), "loader", "rotated"),
        (((Hadamard(order=16),), (_DENSE,)), "loader", "rotated"),
    ],
)
def test_the_section_says_what_loads_the_checkpoint(
    online: tuple[tuple[Primitive, ...], ...], reach: str, profile: str
) -> None:
    section = _config(*online)["quantry"]
    assert (section["reach"], section["profile"]) == (reach, profile)
    assert section["online"].keys() == {
        f"model.layers.{block}.mlp.down_proj" for block, primitives in enumerate(online) if primitives
    }
