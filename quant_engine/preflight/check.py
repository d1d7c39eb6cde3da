"""All that configuration, headers, tokenizer files, text and policy decide about a job, before anything is computed.

The API calls it at submit for a local model. The worker calls it in the stage ``resolve``, before the weights of a Hub
model are downloaded. It reads no weights and imports no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quant_engine.errors import EngineError
from quant_engine.interface.layout import ModelLayout, model_layout
from quant_engine.interface.pattern_check import check_patterns
from quant_engine.interface.positions import position_problems
from quant_engine.interface.problems import Problem
from quant_engine.interface.site_settings import site_problems
from quant_engine.interface.targets import linear_names
from quant_engine.model_files import (
    ModelFiles,
    adapter_problem,
    check_source,
    companion_problem,
    describe_directory,
    without_quantization,
)
from quant_engine.model_files.unread import unread_problems
from quant_engine.policy import SELF, Calibration, Evaluation, Policy
from quant_engine.preflight.chat_template import chat_template_problems
from quant_engine.preflight.site_outlines import site_outlines
from quant_engine.preflight.texts import text_problems
from quant_engine.preflight.tokenizer_files import tokenizer_problems

_MODEL = "/model/id"


@dataclass(frozen=True, kw_only=True)
class JobInputs:
    """What a job asks for, besides its model.

    Attributes:
        policy: fully resolved.
        datasets_dir: of the operator's data sets, if there is one.
    """

    policy: Policy
    calibration: Calibration
    evaluation: Evaluation
    datasets_dir: Path | None = None

    @property
    def calibrates(self) -> Calibration | None:
        """The calibration; None for a job that only measures a model."""
        return self.calibration if self.policy.task == "quantize" else None

    @property
    def reads_text(self) -> bool:
        """Whether any text but the model's own is read."""
        calibration = self.calibrates
        return self.evaluation.perplexity is not None or (calibration is not None and calibration.dataset != SELF)


def check_job(files: ModelFiles, job: JobInputs) -> list[Problem]:
    """Return every reason to refuse the job, those of the model first; an empty list where there is none.

    Args:
        files: of the model. Its weight files may lack all but their headers.
    """
    try:
        return list(_problems(files, job))
    except EngineError as error:
        # What can not be read can not be checked any further.
        return [Problem.of(error, _MODEL)]


def _problems(files: ModelFiles, job: JobInputs) -> Iterator[Problem]:
    # An adapter alone has neither a configuration nor weights, and has to be told as what it is.
    _raise(adapter_problem(files))
    model = describe_directory(files)
    _raise(adapter_problem(files, model.tensors))
    source = check_source(model, weights_only=job.policy.task == "quantize")
    layout = model_layout(without_quantization(model.config))
    companion = companion_problem(files)
    of_model = [*unread_problems(model, layout, source.parts), *tokenizer_problems(files, is_needed=job.reads_text)]
    yield from (Problem.of(each, _MODEL) for each in [*of_model, *([] if companion is None else [companion])])
    yield from chat_template_problems(files, job.policy, job.calibration, job.evaluation)
    yield from position_problems(model.config, job.calibrates, job.evaluation)
    if job.policy.task == "quantize":
        yield from _policy_problems(job.policy, layout)
    yield from text_problems(files, layout, job.calibrates, job.evaluation, job.datasets_dir)


def _raise(problem: EngineError | None) -> None:
    if problem is not None:
        raise problem


def _policy_problems(policy: Policy, layout: ModelLayout) -> Iterator[Problem]:
    findings = check_patterns(policy, linear_names(layout.architecture, layout.layers), layout.architecture)
    # What a pattern means decides the settings, so these are not checked with patterns that mean nothing.
    if findings:
        for each in findings:
            yield Problem(pointer=each.pointer, code=each.code, detail=each.detail, hint="")
        return
    yield from site_problems(site_outlines(layout, policy), policy)
