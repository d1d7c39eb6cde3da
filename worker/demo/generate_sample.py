"""Generate text from a checkpoint: ``python -m worker.generate_sample DIR [--prompt TEXT] [--tokens N]``.

This process gets only the directory. So its text is what the checkpoint generates on any other machine too.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from quant_engine.checkpoint import load
from quant_engine.errors import EngineError


def generate(checkpoint: Path, prompt: str, tokens: int) -> str:
    """Return ``prompt`` and up to ``tokens`` more tokens, decoded greedily.

    Raises:
        EngineError: the directory is not a checkpoint of Quantry.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    model: Any = load(checkpoint)
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id or 0
        )
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


def main() -> int:
    """Print the text; if the checkpoint can not be loaded, write one line to stderr and return 1."""
    parser = argparse.ArgumentParser(prog="python -m worker.generate_sample", description="Text from a checkpoint.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--tokens", type=int, default=40)
    options = parser.parse_args()
    try:
        text = generate(options.checkpoint, options.prompt, options.tokens)
    except (EngineError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
