"""The row of a layer, for the engine, the API, CSV and the client.

The database table (``jobs.repository.models.JobLayer``) repeats the columns, for its migrations; a test compares both.
"""

from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

LayerGroup = Literal["critical", "normal"]
"""The layers that a search is scored on (arXiv 2606.09927)."""


class LayerRow(BaseModel):
    """One quantized linear. Errors are on held-out tokens. A null was not measured, or does not exist.

    An unknown column is refused, so the engine can not report a column that nobody shows. A reader of rows of another
    release derives a type that allows it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Annotated[str, Field(examples=["model.layers.0.mlp.down_proj"])]
    """The name of the linear in the model."""
    block: Annotated[int, Field(examples=[0])]
    """The index of its decoder block."""
    role: Annotated[str, Field(examples=["feed_forward_inner"])]
    """Its role in the block."""
    scheme: Annotated[str, Field(examples=["W4A16-g64"])]
    """Its number formats."""
    transform: Annotated[str, Field(examples=["smooth_rotation"])]
    """The transform of its input."""
    alpha: Annotated[float | None, Field(examples=[0.5])]
    """α of the channel scales."""
    statistic: Annotated[str | None, Field(examples=["l2"])]
    """How the channel scales were computed."""
    error: Annotated[float | None, Field(examples=[12.5])]
    """E = ‖Y − Q(X')Q(W')ᵀ‖_F."""
    error_normalized: Annotated[float | None, Field(examples=[0.05])]
    """E / ‖Y‖_F."""
    sqnr_db: Annotated[float | None, Field(examples=[26.0])]
    """The signal-to-quantization-noise ratio, in dB."""
    cosine: Annotated[float | None, Field(examples=[0.998])]
    """The similarity of the outputs."""
    baseline_error: Annotated[float | None, Field(examples=[15.6])]
    """E under SmoothRot(0.5, max)."""
    gain_percent: Annotated[float | None, Field(examples=[19.9])]
    """How far ``error`` is below ``baseline_error``."""
    rtn_error: Annotated[float | None, Field(examples=[40.2])]
    """E when the same linear is rounded to nearest without a transform."""
    input_absmax: Annotated[float | None, Field(examples=[31.0])]
    """The largest absolute input."""
    input_kurtosis: Annotated[float | None, Field(examples=[950.0])]
    """The kurtosis of the input."""
    parameters: Annotated[int, Field(examples=[884736])]
    """The weights of the linear."""
    bytes: Annotated[int, Field(examples=[470016])]
    """The bytes of its codes and scales."""
    selected: LayerGroup | None
    """The group of the search to which it belongs."""


UNMEASURED: Final[dict[str, Any]] = {
    name: None for name, field in LayerRow.model_fields.items() if type(None) in get_args(field.annotation)
}
"""Every column that may be null, with the value null."""
