"""The environments of a job's subprocesses: an allow-list, never the supervisor's whole environment.

No environment holds a secret, and the runner's is offline. The Hub token of a download or an upload goes over a pipe
(:mod:`worker.subprocesses.token_pipe`).
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import worker

_COMMON: Final = frozenset({"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH"})
_COMPUTE: Final = frozenset({"CUDA_HOME", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"})
_HUB: Final = frozenset(
    {"HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"}
    | {"HF_HUB_DISABLE_XET", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"}
)
_CODE_ROOT: Final = str(Path(worker.__file__).resolve().parent.parent)

RUNNER: Final = (sys.executable, "-P", "-m", "worker.runner")
CHECK: Final = (sys.executable, "-P", "-m", "worker.runner.check")
DOWNLOAD: Final = (sys.executable, "-P", "-m", "worker.download")
PUBLISH: Final = (sys.executable, "-P", "-m", "worker.publishing")


def runner_environment(scratch: Path, *, threads: int, gpu: str | None) -> dict[str, str]:
    """Return the runner's environment: offline, without secrets, with ``scratch`` as home, on one ``gpu`` or none."""
    count = str(threads)
    return _base(scratch, _COMPUTE) | {
        "CUDA_VISIBLE_DEVICES": gpu or "",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        # cuBLAS gives the same bits in each run only with a fixed workspace.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


def download_environment(scratch: Path) -> dict[str, str]:
    """Return the environment of a process that uses the Hub: with its endpoint and proxies, but no token."""
    return _base(scratch, _HUB) | {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}


def publish_environment(scratch: Path) -> dict[str, str]:
    """Return the environment of the process that uploads.

    Uploads use LFS unless the operator sets HF_HUB_DISABLE_XET=0. hf_xet has an HTTP client of its own, whose bytes and
    time-outs can not be observed here (decision 0013).
    """
    return {"HF_HUB_DISABLE_XET": "1"} | _base(scratch, _HUB)


def _base(scratch: Path, allowed: frozenset[str]) -> dict[str, str]:
    return _picked(os.environ, _COMMON | allowed) | {
        # Libraries that write caches or temporary files do so where they are removed with the attempt.
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "HF_HOME": str(scratch / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # The subprocess starts in its scratch directory, and imports the same code as this process.
        "PYTHONPATH": _CODE_ROOT,
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _picked(environment: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    return {name: environment[name] for name in sorted(names & environment.keys())}
