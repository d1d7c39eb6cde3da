"""The text of a card about loading a checkpoint. What is online in its linears decides which text applies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from quant_engine.checkpoint.engines import Verdict, engine_notes
from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.checkpoint.quantry_section import Reach, reach

_PLAIN_CODE: Final = """from transformers import AutoModelForCausalLM, AutoTokenizer

checkpoint = "."  # this directory, or the id of the Hub repository that holds it
model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
prompt = tokenizer("The capital of France is", return_tensors="pt")
tokens = model.generate(prompt.input_ids, attention_mask=prompt.attention_mask, max_new_tokens=20)
print(tokenizer.decode(tokens[0]))"""

_OUR_CODE: Final = """from quant_engine.checkpoint import load
from transformers import AutoTokenizer

checkpoint = "."  # this directory; for a Hub repository, what huggingface_hub.snapshot_download(id) gives
model = load(checkpoint)
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
prompt = tokenizer("The capital of France is", return_tensors="pt")
tokens = model.generate(prompt.input_ids, attention_mask=prompt.attention_mask, max_new_tokens=20)
print(tokenizer.decode(tokens[0]))"""

_CHECKED: Final = "Its logits were checked, in a fresh process, to equal the quantized model's bit for bit."

_PLAIN_TEXT: Final = f"""Plain compressed-tensors, with nothing online: transformers with the package compressed-tensors
loads it, and so do runtimes that have kernels for its number formats, as the table below says.
`quant_engine.checkpoint.load` gives the same model. {_CHECKED}"""

_CLIPPED_TEXT: Final = f"""Plain compressed-tensors, and `load` is `from_pretrained` plus activation clipping.
{_CHECKED}

- **Other runtimes leave the clipping out**: they load the checkpoint, but round activations on a wider range than it
  was made for, and are less accurate."""

_HADAMARD_TEXT: Final = """`load` is `AutoModelForCausalLM.from_pretrained` plus the online rotations. {checked}

- **Plain `from_pretrained` is wrong here**: it drops the online rotations without an error and gives wrong logits.
- **Not SGLang**: it does not read `transform_config`; where it loads the model, it is silently wrong.
- Runtimes that read compressed-tensors' `transform_config` (vLLM) find the rotations there. Where they run the model
  they round by their own kernels, so their logits differ{clipping}; the table below says more.
- Saving a loaded model again drops the rotations: keep this directory as it is."""

_LOADER_TEXT: Final = f"""`load` is `AutoModelForCausalLM.from_pretrained` plus the online transforms. {_CHECKED}

- **Plain `from_pretrained` refuses this checkpoint, on purpose**: compressed-tensors can not express its online
  transforms, and without them the logits would be wrong. Its number types are spelled so that compressed-tensors stops.
  Do not edit them.
- **Not vLLM, not SGLang**: both stop there as well.
- Saving a loaded model again drops the transforms: keep this directory as it is."""

_HEADINGS: Final = {Reach.HADAMARD: "compressed-tensors with Hadamard", Reach.LOADER: "our loader only"}


_VERDICTS: Final[Mapping[Verdict, str]] = {
    "differs": "computed otherwise by",
    "unknown": "not checked with",
    "wrong": "wrong in",
    "refuses": "refused by",
}


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a checkpoint is loaded.

    Attributes:
        reach: which programs can load it.
        plain: whether transformers alone gives the right logits.
        heading, code, text: for the card; ``code`` runs unchanged in the checkpoint's directory.
        online: what its linears do to their input, as a part of a sentence.
    """

    reach: Reach
    plain: bool
    heading: str
    code: str
    text: str
    online: str


def loading(linears: Sequence[QuantizedLinear]) -> Loading:
    """Return how a checkpoint with these linears is loaded."""
    kind = reach(linears)
    clipped = any(linear.online.clip_ratio < 1.0 for linear in linears)
    # Other loaders read a checkpoint with clips without an error, but leave the clips out.
    plain = kind is Reach.ANYWHERE and not clipped
    return Loading(
        reach=kind,
        plain=plain,
        heading=_HEADINGS.get(kind) or _plain_heading(linears),
        code=_PLAIN_CODE if plain else _OUR_CODE,
        text=_text(kind, clipped=clipped),
        online=_online(kind, linears),
    )


def _plain_heading(linears: Sequence[QuantizedLinear]) -> str:
    """Return the heading of a checkpoint without transforms. It says no more than the table of engines below it."""
    engines: dict[str, list[str]] = {}
    for note in engine_notes(linears):
        engines.setdefault(note.verdict, []).append(note.engine)
    said = [f"{words} {' and '.join(engines[each])}" for each, words in _VERDICTS.items() if each in engines]
    return f"plain compressed-tensors, {', '.join(said)}" if said else "loads anywhere"


def _text(kind: Reach, *, clipped: bool) -> str:
    if kind is Reach.ANYWHERE:
        return _CLIPPED_TEXT if clipped else _PLAIN_TEXT
    if kind is Reach.LOADER:
        return _LOADER_TEXT
    return _HADAMARD_TEXT.format(
        checked=_CHECKED, clipping=", and they leave activation clipping out" if clipped else ""
    )


def _online(kind: Reach, linears: Sequence[QuantizedLinear]) -> str:
    transforming = sum(linear.online.transforms for linear in linears)
    return {
        Reach.ANYWHERE: "none of which does anything to its input at run time but round it",
        Reach.HADAMARD: f"{transforming} of which rotate their input with a Hadamard matrix at run time",
        Reach.LOADER: f"{transforming} of which transform their input at run time",
    }[kind]
