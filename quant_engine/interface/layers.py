"""The row of a layer, for the engine, the API, CSV and the client.

The database table (``jobs.repository.models.JobLayer``) repeats the columns, for its migrations; a test compares both.
"""

from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict

LayerGroup = Literal["critical", "normal"]
"""The layers that a search is scored on (arXiv 2606.09927)."""


class LayerRow(BaseModel):
    """One quantized linear. Errors are on held-out tokens. A null was not measured, or does not exist.

    An unknown column is refused, so the engine can not report a column that nobody shows. A reader of rows of another
    release derives a type that allows it.

    Attributes:
        name: of the linear in the model.
        block, role: the index of its transformer block, and its role there.
        scheme: its number formats, as ``W4A4-g128``.
        transform, alpha, statistic: the transform of its input, and how the channel scales were computed.
        error: E = ‖Y − Q(X')Q(W')ᵀ‖_F; ``error_normalized`` is E / ‖Y‖_F.
        sqnr_db: signal-to-quantization-noise ratio, in dB.
        cosine: similarity of the outputs.
        baseline_error: E under SmoothRot(0.5, max); ``gain_percent`` is how far ``error`` is below it.
        rtn_error: E when the same linear is rounded to nearest without a transform.
        input_absmax, input_kurtosis: of the input's values.
        parameters: weights of the linear; ``bytes`` of its codes and scales.
        selected: the group of the search to which it belongs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    block: int
    role: str
    scheme: str
    transform: str
    alpha: float | None
    statistic: str | None
    error: float | None
    error_normalized: float | None
    sqnr_db: float | None
    cosine: float | None
    baseline_error: float | None
    gain_percent: float | None
    rtn_error: float | None
    input_absmax: float | None
    input_kurtosis: float | None
    parameters: int
    bytes: int
    selected: LayerGroup | None


UNMEASURED: Final[dict[str, Any]] = {
    name: None for name, field in LayerRow.model_fields.items() if type(None) in get_args(field.annotation)
}
"""Every column that may be null, with the value null."""
