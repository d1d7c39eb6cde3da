"""GGUF in, dense safetensors out: a tiny llama written here tensor by tensor, by llama.cpp's naming and layout."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quant_engine.errors import InvalidModel
from quant_engine.models.gguf import convert_gguf
from tests.tiny_models import write_tiny_model

HEADS, KEY_VALUE_HEADS, LAYERS = 4, 2, 2
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    block, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{block}.{PARTS[part]}.weight"


def interleaved(w_OI: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp keeps the two halves of a rotary head interleaved."""
    return w_OI.reshape(heads, 2, -1, w_OI.shape[1]).swapaxes(1, 2).reshape(w_OI.shape)


def write_gguf(dense: Path, path: Path) -> dict[str, torch.Tensor]:
    """The model in ``dense`` as a GGUF file, ``down_proj`` in Q8_0. The result is what its tensors stand for."""
    config = json.loads((dense / "config.json").read_text())
    vocabulary = json.loads((dense / "tokenizer.json").read_text())["model"]
    model = AutoModelForCausalLM.from_pretrained(dense)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in vocabulary["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    meant = {}
    for name, tensor in model.state_dict().items():
        stored = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            stored = interleaved(stored, HEADS if "q_proj" in name else KEY_VALUE_HEADS)
        meant[name] = tensor
        if "down_proj" in name:
            codes = gguf.quantize(stored, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name(name), codes, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            meant[name] = torch.from_numpy(gguf.dequantize(codes, gguf.GGMLQuantizationType.Q8_0))
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def test_the_dense_checkpoint_is_what_the_codes_stand_for(tmp_path: Path) -> None:
    dense = write_tiny_model(
        tmp_path / "dense", layers=LAYERS, heads=HEADS, key_value_heads=KEY_VALUE_HEADS, tie_word_embeddings=False
    )
    (tmp_path / "gguf").mkdir()
    meant = write_gguf(dense, tmp_path / "gguf" / "model.gguf")
    convert_gguf(tmp_path / "gguf" / "model.gguf", tmp_path / "out")

    model, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, use_safetensors=True, local_files_only=True
    )
    assert not any(loading.values()), loading
    state = model.state_dict()
    assert state.keys() == meant.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in meant.items())
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())

    text = "The language reference describes the syntax."
    before, after = AutoTokenizer.from_pretrained(dense), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert after(text).input_ids == before(text).input_ids


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"GGUF", b"GGUF" + bytes(100)])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(InvalidModel, match=r"model\.gguf") as caught:
        convert_gguf(path, tmp_path / "out")
    assert "Fetch the file again" in caught.value.hint
    assert not (tmp_path / "out").exists()
