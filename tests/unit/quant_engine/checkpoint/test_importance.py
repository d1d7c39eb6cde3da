"""An importance matrix has the keys and the names that llama.cpp's tools look up."""

from pathlib import Path

import gguf
import pytest
import torch

from quant_engine.checkpoint.importance import ImportanceMatrix, gguf_names, write_importance_matrix
from quant_engine.errors import UnsupportedArchitecture
from quant_engine.interface.architectures import ARCHITECTURES, Architecture, architecture_of
from quant_engine.interface.targets import linear_names

_SEPARATE = ["attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up"]
_FUSED = ["attn_output", "attn_qkv", "ffn_down", "ffn_up"]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.class_name)
def test_every_linear_of_every_architecture_has_a_name(architecture: Architecture) -> None:
    names = gguf_names(architecture, linear_names(architecture, 2), 2)
    expected = _FUSED if architecture.model_type == "phi3" else _SEPARATE
    assert sorted(names.values()) == [f"blk.{block}.{name}.weight" for block in range(2) for name in expected]
    assert names["model.layers.1.self_attn.o_proj"] == "blk.1.attn_output.weight"


def test_the_file_is_what_llama_imatrix_writes(tmp_path: Path) -> None:
    squares = {"model.layers.0.mlp.up_proj": torch.tensor([1.0, 4.0]), "model.layers.0.mlp.down_proj": torch.ones(3)}
    matrix = ImportanceMatrix(squares=squares, tokens=48, dataset="wikitext2", windows=3, length=16)
    write_importance_matrix(tmp_path / "imatrix.gguf", matrix, architecture_of({"model_type": "mistral"}), 1)
    file = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    read = {name: field.contents() for name, field in file.fields.items() if not name.startswith("GGUF.")}
    assert read == {
        "general.type": "imatrix",
        "imatrix.datasets": ["wikitext2"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 16,
    }
    assert {tensor.name: tensor.data.tolist() for tensor in file.tensors} == {
        "blk.0.ffn_up.weight.in_sum2": [[1.0, 4.0]],
        "blk.0.ffn_up.weight.counts": [[48.0]],
        "blk.0.ffn_down.weight.in_sum2": [[1.0, 1.0, 1.0]],
        "blk.0.ffn_down.weight.counts": [[48.0]],
    }


def test_an_architecture_that_gguf_does_not_know_is_refused() -> None:
    unknown = Architecture("NewForCausalLM", "new", (), ARCHITECTURES[0].parameters)
    with pytest.raises(UnsupportedArchitecture, match="no names for the linears of a NewForCausalLM"):
        gguf_names(unknown, ["model.layers.0.mlp.up_proj"], 1)
