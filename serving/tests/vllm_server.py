"""Compare checkpoints with vLLM, one after the other: vLLM is imported once, and a child is forked for each.

    python -P vllm_server.py SERVING_CHECK

It runs in vLLM's environment. Each line of stdin is a request as JSON, each line of stdout its answer.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any


def _check(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("serving_check", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _answer(check: Any, request: dict[str, Any]) -> dict[str, Any]:
    os.environ |= request["environment"]
    try:
        found = check.measure(Path(request["checkpoint"]), Path(request["reference"]), dtype=request["dtype"])
        return dict(check.judged(found, request["bounds"]))
    except Exception as error:  # noqa: BLE001 -- whatever stops vLLM is the answer
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> int:
    """Answer until stdin ends."""
    check = _check(sys.argv[1])
    os.environ |= check.SETTINGS
    # vLLM and its kernels print to stdout, which is for answers alone.
    answers = os.dup(1)
    os.dup2(2, 1)
    import vllm  # noqa: F401, PLC0415 -- after its environment is set; the children inherit it

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.write(answers, (json.dumps(_answer(check, json.loads(line))) + "\n").encode())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            os.write(answers, (json.dumps({"error": f"the process ended with status {status}"}) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
