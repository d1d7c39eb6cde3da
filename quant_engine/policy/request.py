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


ModelId = Annotated[
    str,
    Field(strict=True, pattern=_ID_PATTERN, examples=["HuggingFaceTB/SmolLM2-135M"]),
    AfterValidator(_refuse_ambiguous_id),
]


CredentialId = Annotated[
    str, Field(strict=True, pattern=r"^cred_[0-9a-f]{24}$", examples=["cred_0123456789abcdef01234567"])
]


class ModelReference(Frozen):
    """The model of a job."""

    source: Literal["hub", "local"] = "hub"
    """The Hub, or the operator's models directory."""
    id: ModelId
    """The id that the Hub shows, or the name of a directory in the models directory. Never a path."""
    revision: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")] = "main"
    """A branch, a tag or a commit of the Hub."""
    credential: CredentialId | None = None
    """The id of a stored Hub token, for gated and private models. Null: the operator's, if there is one."""


class InlineTexts(Frozen):
    """Calibration or evaluation text sent with the request."""

    texts: Annotated[
        tuple[Text, ...],
        Field(min_length=1, max_length=4096, examples=[["The first text.", "The second text."]], fail_fast=True),
    ]
    """The texts, in the order in which they are read."""


DatasetName = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", examples=["wikitext2"])]


BUILT_IN: Final = "pydoc"
"""The language reference inside CPython: 465,000 characters of English, available in every installation."""

SELF: Final = "self"
"""The name for text that the model itself generates (``quant_engine.calibration.generate``)."""


class ChatMessage(Frozen):
    """One message of a conversation."""

    role: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$", examples=["user"])]
    """Who says it: ``system``, ``user``, ``assistant``, …"""
    content: Annotated[Content, Field(examples=["What is a scale?"])]
    """What is said."""


class InlineMessages(Frozen):
    """Conversations sent with the request. The model's own chat template turns each into one text."""

    messages: Annotated[
        tuple[Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=1024, fail_fast=True)], ...],
        Field(
            min_length=1,
            max_length=4096,
            examples=[[[{"role": "user", "content": "What is a scale?"}]]],
            fail_fast=True,
        ),
    ]
    """The conversations, each a list of messages."""


class HubDataset(Frozen):
    """A data set on the Hub, read from its Parquet, JSON Lines or text files."""

    hub: Annotated[
        str,
        Field(
            strict=True,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$",
            examples=["Salesforce/wikitext"],
        ),
        AfterValidator(_refuse_ambiguous_id),
    ]
    """Its id, ``owner/name``."""
    config: (
        Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$", examples=["en"])] | None
    ) = None
    """Its configuration. Null: the only one, or the default one."""
    split: (
        Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", examples=["train"])] | None
    ) = None
    """Its split. Null: ``train`` for calibration; for evaluation ``test``, or ``validation`` where there is no test."""
    revision: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")] = "main"
    """A branch, a tag or a commit. It is pinned to a commit when the job first runs."""
    column: Annotated[Name, Field(examples=["text"])] | None = None
    """The column that is read. Null: ``text``, or ``messages`` where a row has no ``text``."""


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

SpecialTokens = Literal["auto", "none"]
"""``auto``: a window begins with the special tokens that the model's tokenizer puts before a text by default."""


class Calibration(Frozen):
    """The text that statistics are collected on, and that layer errors are measured on."""

    dataset: Dataset | None = None
    """A name that ``GET /v1/capabilities`` lists, ``self`` (the model's own samples), texts or conversations, or a data
    set of the Hub. Null: the operator's default."""
    samples: Annotated[int, Field(strict=True, ge=4, le=65536)] = 256
    """The number of sequences."""
    sequence_length: Annotated[int, Field(strict=True, ge=8, le=32768)] = 128
    """The tokens of a sequence."""
    seed: NonNegativeInt = 0
    """The seed of random choices among the tokens, and of the text that ``self`` writes."""
    holdout: Annotated[float, Field(strict=True, gt=0.0, lt=1.0)] = 0.2
    """The last part of the samples, as a fraction, which is used for reports only."""
    special_tokens: SpecialTokens = "auto"
    """``auto``: a sequence begins with the special tokens that the tokenizer puts in front of a text by default."""
    pack: Annotated[bool, Field(strict=True)] = True
    """Whether documents are joined and cut into sequences. Otherwise each sequence is one document, cut or padded."""


class Perplexity(Frozen):
    """The measurement of perplexity, over independent windows."""

    dataset: Dataset | None = None
    """A name that ``GET /v1/capabilities`` lists, texts or conversations, or a data set of the Hub. Null: the
    operator's default."""
    tokens: Annotated[int, Field(strict=True, ge=32, le=100_000_000)] = 16384
    """How many tokens are measured, from the beginning of the text."""
    sequence_length: Annotated[int, Field(strict=True, ge=8, le=32768)] = 512
    """The tokens of a window."""
    special_tokens: SpecialTokens = "auto"
    """``auto``: a window begins with the special tokens that the tokenizer puts in front of a text by default. They
    count as tokens, and are not predicted."""


class Evaluation(Frozen):
    """The measurements on the whole model."""

    perplexity: Perplexity | None = Perplexity()
    """The measurement of perplexity. Null skips it."""


RepoId = Annotated[
    str,
    Field(
        strict=True,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$",
        examples=["me/SmolLM2-135M-w4a16"],
    ),
    AfterValidator(_refuse_ambiguous_id),
]
Branch = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]


class HubTarget(Frozen):
    """Where a checkpoint is published on the Hub."""

    repo: RepoId
    """The repository, as ``owner/name``."""
    private: Annotated[bool, Field(strict=True)] = True
    """Whether a new repository is private."""
    revision: Branch = "main"
    """The branch."""
    credential: CredentialId | None = None
    """The id of a stored Hub token that may write there. Null: the operator's, if there is one."""


Also = Literal["gguf-source"]
"""What a job can write besides its checkpoint."""


class Output(Frozen):
    """The kind of checkpoint, and where it is published."""

    profile: Literal["rotated", "universal"] = "rotated"
    """``universal`` is a checkpoint that plain ``from_pretrained`` loads correctly: nothing online, no clipping of
    activations. ``rotated`` may have both, and then needs our loader."""
    hub: HubTarget | None = None
    """Where the checkpoint is published after the job has succeeded. Null: nowhere."""
    also: Annotated[tuple[Also, ...], Field(max_length=1, examples=[["gguf-source"]], fail_fast=True)] = ()
    """What is written besides the checkpoint. ``gguf-source``: the model in float16, not quantized, with the diagonals
    of its transforms fused, and an importance matrix, for llama.cpp's converter and quantizers."""


class Limits(Frozen):
    """How long a job may wait and run."""

    max_queue_seconds: Count = 86_400
    """How long a job may wait for a worker, in seconds."""
    max_run_seconds: Count = 14_400
    """How long a job may run, in seconds, over all its attempts."""


MetadataKey = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
MetadataValue = Annotated[Name, Field(max_length=512)]


class JobRequest(Frozen):
    """The body of ``POST /v1/jobs``; with policy and datasets resolved, it is the specification that a job stores."""

    model: ModelReference
    """The model to quantize or to measure."""
    policy: Policy
    """What is done to the model: a preset, and the fields that override it."""
    calibration: Calibration = Calibration()
    """The text for calibration."""
    evaluation: Evaluation = Evaluation()
    """The measurements on the whole model."""
    output: Output = Output()
    """The kind of checkpoint, and where it is published."""
    limits: Limits = Limits()
    """How long the job may wait and run."""
    metadata: Annotated[
        dict[MetadataKey, MetadataValue], Field(max_length=16, default_factory=dict, examples=[{"team": "search"}])
    ]
    """Labels of your own, which lists of jobs can be filtered by."""
