"""The row of a layer."""

from typing import Literal

LayerGroup = Literal["critical", "normal"]
"""The layers that a search is scored on (arXiv 2606.09927)."""
