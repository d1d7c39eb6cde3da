"""The stored JSON of a job as types, for the API's document: its options, summary, error, report and event data.

Nothing is validated with these types, because another release may have written what is stored.
"""

from typing import Annotated, Any

from pydantic import Field

from jobs.job.report_sections import GgufSourceView, OracleView, SourceView, SpecialTokensView, WindowsView
from jobs.kit.states import JobStatus
from jobs.kit.views import View
from quant_engine.interface.layers import LayerRow
from quant_engine.policy import Calibration, Evaluation, Perplexity, Policy

Free = Annotated[dict[str, Any], Field(examples=[{}])]


class InlineTextsCount(View):
    """Texts that were sent with the request. They are not repeated."""

    inline_texts: Annotated[int, Field(examples=[2])]
    """The number of texts."""


class CalibrationView(Calibration):
    """The text for calibration."""

    dataset: Annotated[str, Field(examples=["wikitext2"])] | InlineTextsCount  # type: ignore[assignment]  # as shown
    """The name of the dataset, or the number of the request's own texts."""


class PerplexityView(Perplexity):
    """The measurement of perplexity, over independent windows."""

    dataset: Annotated[str, Field(examples=["wikitext2"])] | InlineTextsCount  # type: ignore[assignment]  # as shown
    """The name of the dataset, or the number of the request's own texts."""


class EvaluationView(View):
    """The measurements on the whole model."""

    perplexity: PerplexityView | None
    """The measurement of perplexity. Null: it is skipped."""


class GainView(View):
    """How far the mean error is below that of SmoothRot(0.5, max), in percent. Null where nothing was quantized."""

    selected: Annotated[float | None, Field(examples=[34.3])]
    """Over the layers that the search is scored on."""
    full: Annotated[float | None, Field(examples=[27.7])]
    """Over all quantized layers."""


class PerplexityPair(View):
    """The perplexity before and after."""

    original: Annotated[float | None, Field(examples=[24.94])]
    """Of the original."""
    quantized: Annotated[float | None, Field(examples=[27.81])]
    """Of the checkpoint, its inputs rounded as serving engines round them."""
    compressed_tensors: Annotated[float | None, Field(examples=[27.79])] = None
    """Of the checkpoint in compressed-tensors' own forward, which plain transformers runs. Null: that rounds no input
    differently, or can not run the checkpoint."""


class BytesPair(View):
    """The size of the weights before and after."""

    original: Annotated[int | None, Field(examples=[538100000])]
    """Of the original."""
    quantized: Annotated[int, Field(examples=[173000000])]
    """Of the checkpoint."""


class ChosenView(View):
    """What the search, the training and the selection chose."""

    transforms: Annotated[dict[str, int], Field(examples=[{"smooth_rotation": 30}])]
    """The number of sites with each transform."""
    statistics: Annotated[dict[str, int], Field(examples=[{"l2": 30}])]
    """The number of sites with each statistic."""
    alpha: Annotated[float | None, Field(examples=[0.5])]
    """α, where all sites share one."""
    learning_rate: Annotated[float | None, Field(examples=[0.02])]
    """The learning rate, where all sites share one."""


class Summary(View):
    """The results of a job. Errors are null where nothing was quantized."""

    selected_mean_error: Annotated[float | None, Field(examples=[1884.3])]
    """The mean error over the layers that the search is scored on."""
    full_mean_error: Annotated[float | None, Field(examples=[908.9])]
    """The mean error over all quantized layers."""
    baseline_selected_mean_error: Annotated[float | None, Field(examples=[2869.7])]
    """The same under SmoothRot(0.5, max), over the selected layers."""
    baseline_full_mean_error: Annotated[float | None, Field(examples=[1257.4])]
    """The same under SmoothRot(0.5, max), over all layers."""
    gain_percent: GainView
    """How far the errors are below the baseline's."""
    perplexity: PerplexityPair | None
    """The perplexity before and after. Null: it was not measured."""
    special_tokens: SpecialTokensView
    """The special tokens that windows begin with."""
    bytes: BytesPair
    """The size of the weights before and after."""
    policy: ChosenView
    """What was chosen."""
    gguf_source: GgufSourceView | None = None
    """The model for llama.cpp beside the checkpoint. Absent where none was asked for."""


class JobStatusData(View):
    """A status of the job."""

    status: JobStatus
    """The status."""
    attempt: Annotated[int, Field(examples=[1])]
    """The number of attempts so far."""


class MetricData(View):
    """A number."""

    name: Annotated[str, Field(examples=["train_loss"])]
    """What was measured."""
    value: Annotated[float | None, Field(examples=[0.5])]
    """The number. Null where it is not finite."""


class LogData(View):
    """A line of the log."""

    message: Annotated[str, Field(examples=["The run ran out of memory."])]
    """The line."""


class ReportModel(View):
    """The model that was measured."""

    architecture: Annotated[str, Field(examples=["LlamaForCausalLM"])]
    """The class in transformers."""
    blocks: Annotated[int, Field(examples=[30])]
    """The number of decoder blocks."""
    dtype: Annotated[str, Field(examples=["bfloat16"])]
    """The type of its weights."""
    fingerprint: Annotated[str, Field(examples=["sha256:9f86d081"])]
    """The digest of its files."""
    config: Free
    """Its config.json."""
    quantization_config: Free | None = None
    """The quantization_config of a model that was only measured."""


class Metrics(View):
    """What the numbers mean."""

    error: Annotated[str | None, Field(examples=["E on held-out tokens"])]
    """The error of a layer."""
    baseline: Annotated[str | None, Field(examples=["SmoothRot(0.5, max)"])]
    """The baseline of gains."""
    perplexity: Annotated[str, Field(examples=["exp of the mean negative log-likelihood"])]
    """The perplexity."""


class MeasuredPerplexity(View):
    """One measured perplexity."""

    perplexity: Annotated[float, Field(examples=[24.94])]
    """The perplexity."""
    mean_nll: Annotated[float, Field(examples=[3.2165])]
    """The mean negative log-likelihood, in nats."""
    predicted: Annotated[int, Field(examples=[16352])]
    """The number of predicted tokens."""
    dtype: Annotated[str, Field(examples=["bfloat16"])]
    """The type in which the model computed."""


class MeasuredPerplexities(View):
    """The perplexity of the original and of the checkpoint."""

    original: MeasuredPerplexity | None
    """Of the original."""
    quantized: MeasuredPerplexity
    """Of the checkpoint, its inputs rounded as serving engines round them."""
    compressed_tensors: MeasuredPerplexity | None = None
    """Of the checkpoint in compressed-tensors' own forward, which plain transformers runs. Null: that rounds no input
    differently, or can not run the checkpoint."""


class TuningPoint(View):
    """One judgment of a tuning."""

    step: Annotated[int, Field(examples=[13])]
    """The number of steps before it."""
    loss: Annotated[float, Field(examples=[0.21])]
    """The divergence from the original's predictions on the samples of the last step."""
    validation_loss: Annotated[float, Field(examples=[0.22])]
    """The divergence on validation samples, by which the best point is chosen."""


class TuningView(View):
    """The tuning of scales and norms after rounding."""

    start_loss: Annotated[float, Field(examples=[0.23])]
    """The divergence from the original's predictions on validation samples before the first step."""
    best_loss: Annotated[float, Field(examples=[0.19])]
    """The same at the point that was kept."""
    best_step: Annotated[int, Field(examples=[80])]
    """The step that was kept; 0 where none was better than the start."""
    curve: tuple[TuningPoint, ...]
    """Every judgment, in order."""


class SelectionRegret(View):
    """How far the chosen transforms are above the best candidates, on test tokens."""

    mean_percent: Annotated[float, Field(examples=[0.02])]
    """The mean over the sites."""
    worst_percent: Annotated[float, Field(examples=[0.22])]
    """The worst site."""
    worst_site: Annotated[str, Field(examples=["model.layers.0.mlp.down_proj"])]
    """Its name."""
    best_chosen: Annotated[int, Field(examples=[113])]
    """The number of sites where the choice is the best."""
    sites: Annotated[int, Field(examples=[120])]
    """The number of sites."""


class VerificationView(View):
    """The comparison of the stored checkpoint, loaded in a fresh process, with what was measured."""

    max_abs_difference: Annotated[float, Field(examples=[0.0])]
    """The largest difference of logits."""
    tokens: Annotated[int, Field(examples=[256])]
    """The compared tokens."""
    threads: Annotated[int, Field(examples=[2])]
    """The threads of the fresh process."""
    versions: Annotated[dict[str, str], Field(examples=[{"torch": "2.13.0"}])]
    """The versions of Python and of every imported package."""
    loader: Annotated[str, Field(examples=["transformers.AutoModelForCausalLM.from_pretrained"])]
    """The function that loaded the checkpoint."""


class ReportEnvironment(View):
    """Where the numbers were computed."""

    threads: Annotated[int, Field(examples=[2])]
    """The threads of the run."""
    device: Annotated[str, Field(examples=["cpu"])]
    """The device of the run."""


class Report(View):
    """The whole evaluation of a finished job."""

    version: Annotated[int, Field(examples=[1])]
    """The version of this format."""
    model: ReportModel
    """The model."""
    source: SourceView
    """How the model was stored."""
    policy: Policy
    """The whole policy, as it was asked for."""
    policy_hash: Annotated[str, Field(examples=["sha256:75346f8b19f31b97"])]
    """The digest of the policy without the preset's name."""
    done: Free | None
    """What was done, from the exported layers. Null where nothing was exported."""
    changed_files: Annotated[tuple[str, ...], Field(examples=[("generation_config.json: removed temperature",)])]
    """What was changed in files that the checkpoint takes over."""
    calibration: Calibration | None
    """The text for calibration. Null where nothing was calibrated."""
    evaluation: Evaluation
    """The measurements on the whole model."""
    windows: WindowsView
    """The windows that were really read."""
    metric: Metrics
    """What the numbers mean."""
    search: Free | None
    """The scores of the search, by policy."""
    training: Free | None
    """The curves of the training."""
    tuning: TuningView | None
    """The tuning after rounding. Null where there was none."""
    selection: Free
    """The errors of every candidate, by site."""
    selection_regret: SelectionRegret | None
    """How good the selection was."""
    paper: Free | None
    """The tables of the experiment of arXiv 2606.09927."""
    summary: Summary
    """The summary, as the job has it."""
    perplexity: MeasuredPerplexities | None
    """The measured perplexities."""
    layers: tuple[LayerRow, ...]
    """A row for each quantized linear."""
    oracle: OracleView
    """The comparison of the original, as it was read, with plain transformers."""
    verification: VerificationView | None
    """The gate. Null where no checkpoint was written."""
    environment: ReportEnvironment
    """Where the numbers were computed."""
    gguf_source: GgufSourceView | None = None
    """The model for llama.cpp beside the checkpoint. Absent where none was asked for."""
