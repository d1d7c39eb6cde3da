"""Select the layers on which choices are judged, and the transform of each layer."""

from quant_engine.selection.candidates import Wanted, candidate_name, canonical, distinct, relative_cost, wanted
from quant_engine.selection.choosers import CandidateMeasurements, Tails, Verdict, candidates_of, choose_candidate
from quant_engine.selection.differentiable import Mixture, differentiable, error_gram, learned_mixture
from quant_engine.selection.kurtosis import (
    ROLE_GROUPS,
    KurtosisFit,
    by_kurtosis,
    fit_kurtosis,
    grouped_z,
    robust_z,
    weight_kurtosis,
)
from quant_engine.selection.layers import choose_layers
from quant_engine.selection.lowest_error import Selected, finite_or_infinite, lowest, lowest_error, scored

__all__ = [
    "ROLE_GROUPS",
    "CandidateMeasurements",
    "KurtosisFit",
    "Mixture",
    "Selected",
    "Tails",
    "Verdict",
    "Wanted",
    "by_kurtosis",
    "candidate_name",
    "candidates_of",
    "canonical",
    "choose_candidate",
    "choose_layers",
    "differentiable",
    "distinct",
    "error_gram",
    "finite_or_infinite",
    "fit_kurtosis",
    "grouped_z",
    "learned_mixture",
    "lowest",
    "lowest_error",
    "relative_cost",
    "robust_z",
    "scored",
    "wanted",
    "weight_kurtosis",
]
