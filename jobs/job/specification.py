"""Making the specification that a job stores from a request: policy resolved, names checked, defaults filled in."""

from collections.abc import Sequence

from jobs.job.local_files import local_model_dir, resolve_dataset
from jobs.kit.errors import InvalidPolicy, PolicyRequired, RefusedJob
from jobs.settings import Settings
from quant_engine.interface.datasets import Purpose
from quant_engine.interface.problems import Problem
from quant_engine.model_files import FileRules, ModelFiles
from quant_engine.policy import (
    Also,
    Dataset,
    Evaluation,
    JobRequest,
    Perplexity,
    Policy,
    PolicyError,
    Profile,
    check_also,
    check_profile,
    choice_required,
    resolve_policy,
    undecided,
)
from quant_engine.preflight import JobInputs, check_job


def resolve_request(request: JobRequest, settings: Settings) -> JobRequest:
    """Return the request with all defaults filled in. The worker resolves Hub ids later.

    Raises:
        InvalidPolicy: the policy contradicts itself or names an unknown preset (its pointer begins with /policy), or
            ``output`` has nothing to act on, or the policy does not fit what ``output`` asks for.
        PolicyRequired: the policy has no preset and leaves open what is quantized, or how.
        DatasetNotFound: a dataset's name is unknown here.
    """
    policy = _resolve_policy(request.policy)
    if policy.task == "evaluate" and request.output.hub is not None:
        raise InvalidPolicy(
            "A job that only measures a model writes no checkpoint, so there is nothing to publish. "
            "Leave output.hub out, or choose a preset that quantizes.",
            pointer="/output/hub",
            code="nothing_to_publish",
        )
    _check_profile(policy, request.output.profile)
    _check_also(policy, request.output.also)
    return request.model_copy(
        update={
            "policy": policy,
            "calibration": request.calibration.model_copy(
                update={"dataset": _dataset(request.calibration.dataset, settings, Purpose.CALIBRATION)}
            ),
            "evaluation": Evaluation(perplexity=_perplexity(request.evaluation.perplexity, settings)),
        }
    )


def checked_request(request: JobRequest, settings: Settings) -> JobRequest:
    """Return the resolved request, of which nothing known now rules out the job.

    Raises:
        InvalidPolicy, DatasetNotFound, ModelNotFound: see :func:`resolve_request` and :func:`local_problems`.
        RefusedJob: the model's files, the text and the policy do not fit.
    """
    spec = resolve_request(request, settings)
    problems = local_problems(spec, settings)
    if problems:
        raise RefusedJob(problems)
    return spec


def local_problems(spec: JobRequest, settings: Settings) -> list[Problem]:
    """Return why a job on a local model can not succeed, as far as its files say; of a Hub model nothing is known yet.

    Args:
        spec: a resolved request.

    Raises:
        ModelNotFound: a local model is not in the models directory.
    """
    if spec.model.source != "local":
        return []
    directory = local_model_dir(settings, spec.model.id)
    inputs = JobInputs(
        policy=spec.policy,
        calibration=spec.calibration,
        evaluation=spec.evaluation,
        datasets_dir=settings.datasets_dir,
    )
    return check_job(ModelFiles(directory, FileRules(settings.link_dirs)), inputs)


def _resolve_policy(policy: Policy) -> Policy:
    try:
        resolved = resolve_policy(policy)
    except PolicyError as error:
        raise InvalidPolicy(error.detail, pointer=f"/policy{error.pointer}", code=error.code) from error
    missing = undecided(policy)
    if missing:
        # A default would quantize another model than the one that the request means.
        raise PolicyRequired(f"{choice_required()} A policy without a preset also has to give {', '.join(missing)}.")
    return resolved


def _check_profile(policy: Policy, profile: Profile) -> None:
    try:
        check_profile(policy, profile)
    except PolicyError as error:
        raise InvalidPolicy(error.detail, pointer="/output/profile", code=error.code) from error


def _check_also(policy: Policy, also: Sequence[Also]) -> None:
    try:
        check_also(policy, also)
    except PolicyError as error:
        raise InvalidPolicy(error.detail, pointer="/output/also", code=error.code) from error


def _dataset(dataset: Dataset | None, settings: Settings, purpose: Purpose) -> Dataset:
    # What is inline is in the request, and the worker finds data sets of the Hub.
    return resolve_dataset(settings, dataset, purpose) if dataset is None or isinstance(dataset, str) else dataset


def _perplexity(perplexity: Perplexity | None, settings: Settings) -> Perplexity | None:
    if perplexity is None:
        return None
    return perplexity.model_copy(update={"dataset": _dataset(perplexity.dataset, settings, Purpose.EVALUATION)})
