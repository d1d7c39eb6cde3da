"""A number format is added for real: MXFP8, by two files of a copy of the engine, and a job runs with it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization.quant_scheme import MXFP8A16, QuantizationScheme
from compressed_tensors.quantization.utils import generate_mx_scales, maybe_convert_from_mx_exp
from safetensors.torch import load_file

from tests.extending import apply_example, examples
from tests.source import ROOT, copy_source
from tests.tiny_models import write_tiny_model

_EXAMPLE: Final = examples()["A number format"]
_JOB: Final = """
import sys
from pathlib import Path
import quant_engine
from tests.integration.quant_engine.runs import policy_of, run_policy, small

root = Path(sys.argv[1])
assert Path(quant_engine.__file__).is_relative_to(root)
policy = policy_of(
    weights={"format": "mxfp8"}, activations={"format": "mxfp8"}, transform={"kind": "none"}, targets=["o_proj"]
)
run_policy(root / "model", policy, root, **small())
"""


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A directory with a copy of the source."""
    return copy_source(tmp_path)


def _python(directory: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``program`` in a process of its own that imports the copy, and the tests of this tree."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": f"{directory}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_a_job_runs_with_a_format_that_two_files_add(engine: Path) -> None:
    assert _EXAMPLE.edited == {"quant_engine/policy/formats.py", "quant_engine/grids/formats.py"}
    apply_example(_EXAMPLE, engine)
    model = write_tiny_model(engine / "model", dtype=torch.bfloat16)
    done = _python(engine, _JOB, str(engine))
    assert done.returncode == 0, done.stderr
    output = engine / "output"
    assert {row["scheme"] for row in json.loads((output / "layers.json").read_text())} == {"MXFP8"}
    config = json.loads((output / "checkpoint" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "mxfp8-quantized"
    assert "Nobody has checked" in (output / "checkpoint" / "README.md").read_text()
    _assert_compressed_like_the_peer(model, output / "checkpoint")


def _assert_compressed_like_the_peer(model: Path, checkpoint: Path) -> None:
    """The stored codes and scales are those that compressed-tensors makes of the dense weight."""
    name = "model.layers.0.self_attn.o_proj"
    dense_OI = load_file(model / "model.safetensors")[f"{name}.weight"].float()
    scheme = QuantizationScheme(targets=[name], **MXFP8A16)
    absmax_OG = dense_OI.reshape(len(dense_OI), -1, 32).abs().amax(dim=-1)
    scale_OG = maybe_convert_from_mx_exp(scheme.weights, generate_mx_scales(absmax_OG, num_bits=8))
    compressor = BaseCompressor.get_value_from_registry("mxfp8-quantized")
    expected = compressor.compress({"weight": dense_OI, "weight_scale": scale_OG}, scheme)
    stored = load_file(checkpoint / "model.safetensors")
    for key, tensor in expected.items():
        found = stored[f"{name}.{key}"]
        assert found.dtype == tensor.dtype
        assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8)), key


def test_a_row_without_a_grid_stops_the_engine(engine: Path) -> None:
    apply_example(_EXAMPLE, engine, only="quant_engine/policy/*")
    failed = _python(engine, "import quant_engine.grids")
    assert failed.returncode != 0
    assert "number format mxfp8 has a row but no grid" in failed.stderr


@pytest.mark.parametrize(
    ("row", "wrong", "module", "said"),
    [
        ('"mxfp8", _MXFP8', '"mxfp8"', "quant_engine.policy", "missing 1 required positional argument: 'spec'"),
        (
            "bits=8,\n    is_float=True,\n    group_size=32",
            "bits=8,\n    is_float=True",
            "quant_engine.policy",
            "group_size",
        ),
        pytest.param(
            '"mxfp8-quantized"',
            '"mxfp9"',
            "quant_engine.checkpoint",
            "'mxfp9' is not a valid CompressionFormat",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_row_that_is_not_whole_stops_the_engine(engine: Path, row: str, wrong: str, module: str, said: str) -> None:
    apply_example(_EXAMPLE, engine)
    table = engine / "quant_engine" / "policy" / "formats.py"
    content = table.read_text()
    assert content.count(row) == 1
    table.write_text(content.replace(row, wrong))
    failed = _python(engine, f"import {module}")
    assert failed.returncode != 0
    assert said in failed.stderr.splitlines()[-1]
