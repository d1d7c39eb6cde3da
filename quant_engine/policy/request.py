"""The request of a job around its policy: the model, the calibration and evaluation data, the output, the limits."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from quant_engine.policy.fields import Content, Count, Frozen, Name, NonNegativeInt, Text
from quant_engine.policy.types import Policy

_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$"


def _refuse_ambiguous_id(model_id: str) -> str:
    # The Hub allows neither. '--' separates owner and name in its cache, and '..' could leave a directory.
    if "--" in model_id or ".." in model_id:
        raise ValueError("must not contain '--' or '..'; give the id as the Hub shows it, or a local directory's name")
    return model_id


ModelId = Annotated[str, Field(strict=True, pattern=_ID_PATTERN), AfterValidator(_refuse_ambiguous_id)]


CredentialId = Annotated[str, Field(strict=True, pattern=r"^cred_[0-9a-f]{24}$")]


class ModelReference(Frozen):
    """A model by source and id: ``hub``, or ``local`` for a directory in the operator's models directory.

    ``credential`` is the id of a stored Hub token, for gated and private models; null uses the operator's, if any.
    """

    source: Literal["hub", "local"] = "hub"
    id: ModelId
    revision: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")] = "main"
    credential: CredentialId | None = None


class InlineTexts(Frozen):
    """Calibration or evaluation text sent with the request."""

    texts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=4096)]


DatasetName = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


BUILT_IN: Final = "pydoc"
"""The language reference inside CPython: 465,000 characters of English, available in every installation."""

SELF: Final = "self"
"""The name for text that the model itself generates (``quant_engine.calibration.generate``)."""


class ChatMessage(Frozen):
    """One message of a conversation: who says it (``system``, ``user``, ``assistant``, …), and what."""

    role: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")]
    content: Content


class InlineMessages(Frozen):
    """Conversations sent with the request. The model's own chat template turns each into one text."""

    messages: Annotated[
        tuple[Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=1024)], ...],
        Field(min_length=1, max_length=4096),
    ]


class HubDataset(Frozen):
    """A data set on the Hub, as ``owner/name``, read from its Parquet, JSON Lines or text files.

    ``config`` null is its only or default configuration. ``split`` null is ``train`` for calibration; for evaluation
    it is ``test``, or ``validation`` where there is no ``test``. ``column`` null is ``text``, or ``messages`` where a
    row has no ``text``. ``revision`` is pinned to a commit when the job first runs.
    """

    hub: Annotated[
        str,
        Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"),
        AfterValidator(_refuse_ambiguous_id),
    ]
    config: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$")] | None = None
    split: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    revision: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")] = "main"
    column: Name | None = None


HUB_DATASETS: Final[Mapping[str, HubDataset]] = {
    "c4": HubDataset(hub="allenai/c4", config="en"),
    "wikitext2": HubDataset(hub="Salesforce/wikitext", config="wikitext-2-raw-v1"),
}
"""The data sets of the Hub that have a name of their own here, where the operator has no folder of that name."""


def _form_of(value: Any) -> str:
    """Name the form that a data set is given in, so that errors are those of this form alone."""
    if not isinstance(value, Mapping | Frozen):
        return "DatasetName"
    given = value if isinstance(value, Mapping) else type(value).model_fields
    forms = {"hub": "HubDataset", "messages": "InlineMessages"}
    return next((form for field, form in forms.items() if field in given), "InlineTexts")


# The tags are no names of fields: errors carry them in their place, where they must not be taken for a field.
Dataset = Annotated[
    Annotated[DatasetName, Tag("DatasetName")]
    | Annotated[InlineTexts, Tag("InlineTexts")]
    | Annotated[InlineMessages, Tag("InlineMessages")]
    | Annotated[HubDataset, Tag("HubDataset")],
    Discriminator(_form_of),
]
"""A text: a name, texts or conversations in the request itself, or a data set of the Hub."""


class Calibration(Frozen):
    """``samples`` sequences of ``sequence_length`` tokens; the last ``holdout`` fraction is used for reports only.

    ``dataset`` is a name that ``/v1/capabilities`` lists, ``self`` (the model's own samples), inline texts or messages,
    or a data set of the Hub; null is the operator's default.
    """

    dataset: Dataset | None = None
    samples: Annotated[int, Field(strict=True, ge=4, le=65536)] = 256
    sequence_length: Annotated[int, Field(strict=True, ge=8, le=32768)] = 128
    seed: NonNegativeInt = 0
    holdout: Annotated[float, Field(strict=True, gt=0.0, lt=1.0)] = 0.2


class Perplexity(Frozen):
    """Perplexity over the first ``tokens`` evaluation tokens, in independent windows of ``sequence_length``."""

    dataset: Dataset | None = None
    tokens: Annotated[int, Field(strict=True, ge=32, le=100_000_000)] = 16384
    sequence_length: Annotated[int, Field(strict=True, ge=8, le=32768)] = 512


class Evaluation(Frozen):
    """The measurements on the whole model; ``perplexity`` null skips perplexity."""

    perplexity: Perplexity | None = Perplexity()


RepoId = Annotated[
    str,
    Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"),
    AfterValidator(_refuse_ambiguous_id),
]
Branch = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]


class HubTarget(Frozen):
    """Where a checkpoint is published: ``owner/name`` on the Hub, private by default.

    ``credential`` is the id of a stored Hub token that may write there; null uses the operator's, if any.
    """

    repo: RepoId
    private: Annotated[bool, Field(strict=True)] = True
    revision: Branch = "main"
    credential: CredentialId | None = None


class Output(Frozen):
    """The kind of checkpoint, and where it is published.

    ``universal`` is a checkpoint that plain ``from_pretrained`` loads correctly: nothing online, no clipping of
    activations. ``rotated`` may have both, and then needs our loader. ``hub`` publishes the checkpoint after the job
    has succeeded.
    """

    profile: Literal["rotated", "universal"] = "rotated"
    hub: HubTarget | None = None


class Limits(Frozen):
    """How long a job may wait and run, in seconds of wall clock."""

    max_queue_seconds: Count = 86_400
    max_run_seconds: Count = 14_400


MetadataKey = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
MetadataValue = Annotated[Name, Field(max_length=512)]


class JobRequest(Frozen):
    """The body of ``POST /v1/jobs``; with policy and datasets resolved, it is the specification that a job stores."""

    model: ModelReference
    policy: Policy = Policy(preset="trainable-smoothrot-w4a4")
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()
    output: Output = Output()
    limits: Limits = Limits()
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16, default_factory=dict)]
