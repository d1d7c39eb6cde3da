"""The model card that travels with a checkpoint."""

from collections.abc import Mapping, Sequence

from quant_engine.checkpoint.packing import QuantizedLinear

_TEXT = """---
library_name: transformers
tags: [quantized, compressed-tensors, hadamard]
---

# {title}

Quantized by Quantry: {count} linear layers, {rotated} of which rotate their input with a Hadamard matrix at run time.

## How to load it

```python
from quant_engine.checkpoint import load
from transformers import AutoTokenizer

model = load("path/to/this/directory")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
```

`load` is `AutoModelForCausalLM.from_pretrained` plus the online rotations. Its logits were checked, in a fresh process,
to equal the quantized model's bit for bit.

- **Plain `from_pretrained` is wrong here**: it drops the online rotations without an error and gives wrong logits.
- **Not SGLang**: it does not read `transform_config`, loads the model and is silently wrong.
- Runtimes that read compressed-tensors' `transform_config` (vLLM) find the rotations there. They round activations by
  their own kernels, so their logits differ slightly.
- Saving a loaded model again drops the rotations: keep this directory as it is.

## Facts

{facts}
"""


def model_card(facts: Mapping[str, str], linears: Sequence[QuantizedLinear]) -> str:
    """``README.md``: how to load the checkpoint, what does not work, and ``facts`` as a table."""
    rows = ["| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in facts.items())]
    return _TEXT.format(
        title=facts.get("model", "A quantized model"),
        count=len(linears),
        rotated=sum(linear.online.order is not None for linear in linears),
        facts="\n".join(rows),
    )
