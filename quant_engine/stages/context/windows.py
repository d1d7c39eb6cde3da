"""The windows of a run: the text of calibration and evaluation, or what the model writes itself, as token ids.

Both are cut before the first stage has read the model, so that a text that is too short, or a tokenizer that does not
belong to the model, is refused before anything is computed.
"""

import torch

from quant_engine.calibration import (
    NO_BEGINNING,
    Beginning,
    Purpose,
    TokenizedDocument,
    calibration_windows,
    check_ids,
    evaluation_windows,
    self_windows,
    special_beginning,
    tokenized,
)
from quant_engine.errors import ModelNotFound
from quant_engine.policy import SELF, Dataset, Perplexity
from quant_engine.stages.context.run import Run
from quant_engine.stages.context.text import documents_for, resolved_dataset
from quant_engine.windows import Windows


def check_texts(run: Run) -> None:
    """Cut the windows of the run's texts, and store them in ``run.cut`` for the stages.

    Raises:
        DatasetNotFound, NotEnoughText: the text is not there, or too short.
        ModelNotFound, InvalidModel: there is no usable tokenizer, or it does not belong to the model.
    """
    if run.sites and not _writes_itself(run, run.spec.calibration.dataset):
        calibration_windows_of(run)
    perplexity = run.spec.evaluation.perplexity
    if perplexity is not None and not _writes_itself(run, perplexity.dataset):
        evaluation_windows_of(run, perplexity)


def calibration_windows_of(run: Run) -> Windows:
    """The run's calibration windows [S, T]: fit, validation and test samples, in this order."""
    calibration = run.spec.calibration
    samples, length = calibration.samples, calibration.sequence_length
    beginning = beginning_of(run, calibration.special_tokens, calibration.dataset)
    if _writes_itself(run, calibration.dataset):
        run.observer.log(f"The model writes {samples} samples of {length} tokens as its own calibration text.")
        return self_windows(
            run.source, samples=samples, sequence_length=length, seed=calibration.seed, beginning=beginning
        )
    if Purpose.CALIBRATION not in run.cut:
        texts = documents_for(run, calibration.dataset, Purpose.CALIBRATION, samples * length)
        documents = tokenized(run.tokenizer, texts, beginning, joined=calibration.pack)
        windows = calibration_windows(
            documents,
            samples=samples,
            sequence_length=length,
            seed=calibration.seed,
            pack=calibration.pack,
            special_tokens=_begun_with(documents, beginning),
        )
        _keep(run, Purpose.CALIBRATION, [windows])
    return run.cut[Purpose.CALIBRATION][0]


def evaluation_windows_of(run: Run, settings: Perplexity) -> list[Windows]:
    """The evaluation text as windows [S, T]; the last ones may be shorter."""
    beginning = beginning_of(run, settings.special_tokens, settings.dataset)
    if _writes_itself(run, settings.dataset):
        return _written_for_evaluation(run, settings, beginning)
    if Purpose.EVALUATION not in run.cut:
        texts = documents_for(run, settings.dataset, Purpose.EVALUATION, settings.tokens)
        documents = tokenized(run.tokenizer, texts, beginning)
        windows = evaluation_windows(
            documents,
            tokens=settings.tokens,
            sequence_length=settings.sequence_length,
            special_tokens=_begun_with(documents, beginning),
        )
        _keep(run, Purpose.EVALUATION, windows)
    return run.cut[Purpose.EVALUATION]


def window_shapes(run: Run, settings: Perplexity) -> list[Windows]:
    """Windows of the right shapes without values, to count the passes before any text is read."""
    given = max(1, len(beginning_of(run, settings.special_tokens, settings.dataset).ids))
    whole, rest = divmod(settings.tokens, settings.sequence_length)
    shapes = [(whole, settings.sequence_length)] if whole else []
    shapes += [(1, rest)] if rest > given else []
    return [Windows.plain(torch.empty(shape, dtype=torch.int64, device="meta"), given=given) for shape in shapes]


def beginning_of(run: Run, special_tokens: str, dataset: Dataset | None) -> Beginning:
    """The special tokens that windows begin with.

    Text that the model writes itself needs no tokenizer. Without one it begins with a random token.
    """
    if special_tokens == "none":
        return NO_BEGINNING
    try:
        tokenizer = run.tokenizer
    except ModelNotFound:
        if _writes_itself(run, dataset):
            return NO_BEGINNING
        raise
    return special_beginning(tokenizer)


def _begun_with(documents: list[TokenizedDocument], beginning: Beginning) -> tuple[str, ...]:
    """The names of the special tokens, if any document begins with them: a chat template may write none."""
    return beginning.tokens if any(each.lead for each in documents) else ()


def _keep(run: Run, purpose: Purpose, windows: list[Windows]) -> None:
    check_ids(run.tokenizer, windows, int(run.model.config.vocab_size))
    run.cut[purpose] = windows


def _written_for_evaluation(run: Run, settings: Perplexity, beginning: Beginning) -> list[Windows]:
    whole, rest = divmod(settings.tokens, settings.sequence_length)
    written = self_windows(
        run.source,
        samples=whole + bool(rest),
        sequence_length=settings.sequence_length,
        # Another seed than calibration's, so that the model is not measured on what it was calibrated on.
        seed=run.spec.calibration.seed + 1,
        beginning=beginning,
    )
    found = [written[:whole], written[whole:].shortened(rest)]
    return [each for each in found if each.predicted]


def _writes_itself(run: Run, dataset: Dataset | None) -> bool:
    return resolved_dataset(run, dataset) == SELF
