"""The model card that travels with a checkpoint: what loads it, and what must not be used."""

from collections.abc import Mapping, Sequence
from typing import Final

from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.checkpoint.section import Reach, reach

_TEXT: Final = """---
library_name: transformers
tags: [quantized, compressed-tensors{tag}]
---

# {title}

Quantized by Quantry: {count} linear layers, {online}.

## How to load it: {reach}

```python
{code}
```

{text}
## Facts

{facts}
"""

_PLAIN_CODE: Final = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/directory", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")"""

_OUR_CODE: Final = """from quant_engine.checkpoint import load
from transformers import AutoTokenizer

model = load("path/to/this/directory")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")"""

_CHECKED: Final = """Its logits were checked, in a fresh process, to equal the quantized model's bit for bit.
"""

_PLAIN_TEXT: Final = """Plain compressed-tensors, with nothing online: transformers loads it, and so does every
runtime that has kernels for its number formats. `quant_engine.checkpoint.load` gives the same model; {checked}"""

_CLIPPED_TEXT: Final = """Plain compressed-tensors, and `load` is `from_pretrained` plus activation clipping. {checked}
- **Other runtimes leave the clipping out**: they load the checkpoint, but round activations on a wider range than it
  was made for, and are less accurate.
"""

_HADAMARD_TEXT: Final = """`load` is `AutoModelForCausalLM.from_pretrained` plus the online rotations. {checked}
- **Plain `from_pretrained` is wrong here**: it drops the online rotations without an error and gives wrong logits.
- **Not SGLang**: it does not read `transform_config`, loads the model and is silently wrong.
- Runtimes that read compressed-tensors' `transform_config` (vLLM) find the rotations there. They round activations by
  their own kernels, so their logits differ slightly{clipping}.
- Saving a loaded model again drops the rotations: keep this directory as it is.
"""

_LOADER_TEXT: Final = """`load` is `AutoModelForCausalLM.from_pretrained` plus the online transforms. {checked}
- **Plain `from_pretrained` refuses this checkpoint, on purpose**: compressed-tensors can not express its online
  transforms, and without them the logits would be wrong. Its number types are spelled so that compressed-tensors stops.
  Do not edit them.
- **Not vLLM, not SGLang**: whatever does not stop there is silently wrong.
- Saving a loaded model again drops the transforms: keep this directory as it is.
"""

_HEADINGS: Final = {
    Reach.ANYWHERE: "loads anywhere",
    Reach.HADAMARD: "compressed-tensors with Hadamard",
    Reach.LOADER: "our loader only",
}


def model_card(facts: Mapping[str, str], linears: Sequence[QuantizedLinear]) -> str:
    """``README.md``: what the checkpoint loads with, what does not work, and ``facts`` as a table."""
    kind = reach(linears)
    clipped = any(linear.online.clip_ratio < 1.0 for linear in linears)
    plain = kind is Reach.ANYWHERE and not clipped
    rows = ["| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in facts.items())]
    return _TEXT.format(
        tag=", hadamard" if kind is Reach.HADAMARD else "",
        title=facts.get("model", "A quantized model"),
        count=len(linears),
        online=_online(kind, linears),
        reach=_HEADINGS[kind],
        code=_PLAIN_CODE if plain else _OUR_CODE,
        text=_text(kind, clipped),
        facts="\n".join(rows),
    )


def _online(kind: Reach, linears: Sequence[QuantizedLinear]) -> str:
    transforming = sum(linear.online.transforms for linear in linears)
    return {
        Reach.ANYWHERE: "none of which does anything to its input at run time but round it",
        Reach.HADAMARD: f"{transforming} of which rotate their input with a Hadamard matrix at run time",
        Reach.LOADER: f"{transforming} of which transform their input at run time",
    }[kind]


def _text(kind: Reach, clipped: bool) -> str:
    if kind is Reach.ANYWHERE:
        return (_CLIPPED_TEXT if clipped else _PLAIN_TEXT).format(checked=_CHECKED)
    if kind is Reach.LOADER:
        return _LOADER_TEXT.format(checked=_CHECKED)
    return _HADAMARD_TEXT.format(checked=_CHECKED, clipping="; they leave activation clipping out" if clipped else "")
