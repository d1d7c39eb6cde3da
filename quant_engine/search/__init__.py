"""Grid search for scale policies: candidates, scores per site, and the guarded choice from tables of scores."""

from quant_engine.search.candidate_grid import SiteScores, baseline_transform, candidate_transforms
from quant_engine.search.choice import SharedChoice, guarded, search_layer, search_shared
from quant_engine.search.clip import search_clip

__all__ = [
    "SharedChoice",
    "SiteScores",
    "baseline_transform",
    "candidate_transforms",
    "guarded",
    "search_clip",
    "search_layer",
    "search_shared",
]
