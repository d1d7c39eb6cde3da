"""Copy the engine's functions for inputs of quantized linears into the wheel, as ``quantry_vllm.online``.

The plugin needs nothing else of the engine, and an installation of vLLM should not have to hold the engine.
"""

import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "quant_engine.online"
COPY = "quantry_vllm.online"


class OnlineFunctions(BuildHookInterface):
    """Adds every module of :data:`SOURCE`, with its imports renamed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the copies into a temporary directory, and include them."""
        del version
        source = Path(self.root).parent.parent.joinpath(*SOURCE.split("."))
        target = Path(tempfile.mkdtemp(prefix="quantry-vllm-"))
        for path in source.glob("*.py"):
            text = path.read_text(encoding="utf-8").replace(SOURCE, COPY)
            (target / path.name).write_text(text, encoding="utf-8")
            build_data["force_include"][str(target / path.name)] = "/".join((*COPY.split("."), path.name))
