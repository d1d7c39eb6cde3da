"""A streamed forward is the whole model's forward, with one block in memory at a time."""

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from quant_engine.errors import InvalidModel, UnsupportedArchitecture
from quant_engine.models import CheckpointSource, StreamedModel
from tests.tiny_models import ARCHITECTURES, write_tiny_model


def _streamed_logits(model: StreamedModel, input_ids_BT: Tensor) -> Tensor:
    entered = model.enter(input_ids_BT)
    hidden = entered.hidden_BTD
    with torch.no_grad():
        for index in range(model.blocks):
            with model.block(index) as block:
                hidden = block(hidden, **entered.layer_arguments[index])
    return model.leave(hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_streamed_logits_equal_the_whole_models_bit_for_bit(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    directory = write_tiny_model(tmp_path, architecture, layers=3, dtype=dtype)
    input_ids = torch.randint(0, 512, (3, 40), generator=torch.Generator().manual_seed(1))
    attention = "eager" if architecture == "gemma2" else "sdpa"  # sdpa drops Gemma 2's cap of the attention logits
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=attention).eval()
    with torch.no_grad():
        expected = whole(input_ids).logits
    model = StreamedModel(CheckpointSource(directory), dtype=dtype)
    assert torch.equal(_streamed_logits(model, input_ids), expected)


def test_sliding_window_layers_get_their_own_mask(tmp_path: Path) -> None:
    directory = write_tiny_model(
        tmp_path, "qwen2", layers=4, use_sliding_window=True, sliding_window=8, max_window_layers=2
    )
    input_ids = torch.randint(0, 512, (2, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(directory).eval()(input_ids).logits
    model = StreamedModel(CheckpointSource(directory))
    assert "sliding_attention" in model.config.layer_types
    assert torch.equal(_streamed_logits(model, input_ids), expected)


def test_sharded_checkpoints_stream_like_single_files(tmp_path: Path) -> None:
    single = write_tiny_model(tmp_path / "single", layers=4)
    sharded = write_tiny_model(tmp_path / "sharded", layers=4, max_shard_size="200KB")
    assert len(CheckpointSource(sharded).shards) > 1
    input_ids = torch.arange(32)[None]
    logits = [_streamed_logits(StreamedModel(CheckpointSource(path)), input_ids) for path in (single, sharded)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("layers", [2, 8])
def test_one_block_is_alive_whatever_the_depth(layers: int, tmp_path: Path) -> None:
    model = StreamedModel(CheckpointSource(write_tiny_model(tmp_path, layers=layers)))

    def live_blocks() -> int:
        return sum(
            type(item) is LlamaDecoderLayer and any(not value.is_meta for value in item.parameters())
            for item in gc.get_objects()
        )

    most = 0
    kept = []
    for index in range(layers):
        with model.block(index) as block:
            kept.append(block)
            most = max(most, live_blocks())
    assert most == 1
    assert live_blocks() == 0


def test_the_embedding_and_head_stay_out_of_the_blocks(tmp_path: Path) -> None:
    tied = StreamedModel(CheckpointSource(write_tiny_model(tmp_path / "tied")))
    untied = StreamedModel(CheckpointSource(write_tiny_model(tmp_path / "untied", "qwen3")))
    assert tied.end_names == ("model.embed_tokens.weight", "model.norm.weight")
    assert untied.end_names == ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    assert "model.layers.1.self_attn.q_norm.weight" in untied.block_names(1)


def test_a_config_that_does_not_fit_the_weights_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path)
    config = (directory / "config.json").read_text().replace('"intermediate_size": 96', '"intermediate_size": 80')
    (directory / "config.json").write_text(config)
    model = StreamedModel(CheckpointSource(directory))
    with pytest.raises(InvalidModel, match=r"block 0 do not fit"), model.block(0):
        pass


def test_nonsense_in_the_config_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path)
    config = (directory / "config.json").read_text().replace('"hidden_act": "silu"', '"hidden_act": 7')
    (directory / "config.json").write_text(config)
    with pytest.raises(UnsupportedArchitecture):
        StreamedModel(CheckpointSource(directory))
