"""Sections of a report as types, for the API's document. They say what was read; nothing is validated with them."""

from typing import Annotated, Literal

from pydantic import Field

from jobs.kit.views import View

Tokens = Annotated[tuple[str, ...], Field(examples=[("<bos>",)])]


class CalibrationWindows(View):
    """The windows that calibration read."""

    special_tokens: Tokens
    """The special tokens that each window begins with. Empty: none."""
    pack: bool
    """Whether documents were joined and cut."""
    sequence_length: Annotated[int, Field(examples=[128])]
    """The tokens of a window."""
    samples: Annotated[int, Field(examples=[256])]
    """The number of windows."""
    tokens: Annotated[int, Field(examples=[32768])]
    """The tokens of all windows, without padding."""


class EvaluationWindows(View):
    """The windows that perplexity was measured on."""

    special_tokens: Tokens
    """The special tokens that each window begins with. Empty: none."""
    pack: bool
    """Whether documents were joined and cut."""
    sequence_length: Annotated[int, Field(examples=[512])]
    """The tokens of a window."""
    tokens: Annotated[int, Field(examples=[16384])]
    """The tokens of all windows."""
    predicted: Annotated[int, Field(examples=[16352])]
    """The tokens that were predicted."""


class WindowsView(View):
    """The windows of a run."""

    calibration: CalibrationWindows | None
    """Of calibration. Null: nothing was calibrated."""
    evaluation: EvaluationWindows | None
    """Of evaluation. Null: perplexity was not measured."""


class SpecialTokensView(View):
    """The special tokens that windows begin with."""

    calibration: Tokens | None
    """Those of calibration. Null: nothing was calibrated."""
    evaluation: Tokens | None
    """Those of evaluation. Null: perplexity was not measured."""


class SourceQuantizationView(View):
    """How a source that is quantized already was read."""

    format: Annotated[str, Field(examples=["FP8: F8_E4M3 codes with a scale for each tensor"])]
    """The name of its format."""
    weights: Annotated[str, Field(examples=["multiplied by their scales, in bfloat16"])]
    """How its weights were read."""
    inputs: Annotated[str, Field(examples=["in floating point"])]
    """How the inputs of its linears were computed."""
    unused_parts: Annotated[tuple[str, ...], Field(examples=[("input_scale",)])]
    """The stored parts that were not used."""


class SourceView(View):
    """The model that was read."""

    quantization: SourceQuantizationView | None
    """How it is quantized already. Null: it is dense."""


class OracleView(View):
    """The comparison of the model as it was read with plain transformers."""

    compared: Literal["whole model", "first block and head", "none"]
    """What was compared."""
    relative_difference: Annotated[float | None, Field(examples=[0.0])]
    """The norm of the difference over the logits, relative to their norm. Null: nothing was compared."""
    transformers: Annotated[str, Field(examples=["5.17.0"])]
    """The version of transformers."""


class ImportanceView(View):
    """The importance matrix of a ``gguf-source``."""

    linears: Annotated[int, Field(examples=[210])]
    """The number of linears."""
    tokens: Annotated[int, Field(examples=[26214])]
    """The tokens of the calibration over which squares were summed."""
    dataset: Annotated[str, Field(examples=["wikitext2"])]
    """The name of the calibration's text; ``inline`` for texts of the request."""


class GgufSourceView(View):
    """The model that was written besides the checkpoint, for llama.cpp."""

    dtype: Annotated[str, Field(examples=["float16"])]
    """The type of its weights."""
    fused_sites: Annotated[int, Field(examples=[120])]
    """The inputs with a fused diagonal."""
    sites: Annotated[int, Field(examples=[120])]
    """All inputs that linears of the blocks share."""
    relative_difference: Annotated[float, Field(examples=[0.0009])]
    """‖Δ logits‖ / ‖logits‖ to the original, computed in float32, on text of the calibration."""
    importance: ImportanceView
    """The importance matrix."""
