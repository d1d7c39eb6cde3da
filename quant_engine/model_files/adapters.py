"""Recognize adapters: the weights of a fine-tuning (LoRA and its kin) without or beside the model that they change."""

import re
from collections.abc import Iterable
from typing import Any, Final

from quant_engine.errors import AdapterNotMerged
from quant_engine.model_files.headers import INDEX, SINGLE
from quant_engine.model_files.opening import ModelFiles

ADAPTER_CONFIG: Final = "adapter_config.json"

_FILES: Final = re.compile(r"(adapter_model|adapters|pytorch_adapter|pytorch_lora_weights|lora_weights)[-.].*")
_TENSORS: Final = re.compile(
    r"(\Abase_model\.model\.)"
    r"|(\.(lora_[a-z]+|lora_embedding_[ab]|lora_magnitude_vector|ia3_l|vera_lambda_[bd]|hada_[wt]\d(_[ab])?|lokr_[wt]\d(_[ab])?"
    r"|oft_[rs]|boft_[rs]|base_layer|modules_to_save|original_module|prompt_embeddings|prompt_encoder)(\.|\Z))",
    re.IGNORECASE,
)
# A name with more than one slash, or with a leading one, is a path of somebody's machine.
_MODEL_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?", re.ASCII)
_KIND: Final = re.compile(r"[A-Za-z0-9_]{1,30}", re.ASCII)
_MERGE: Final = "Merge it first (PEFT: merge_and_unload, then save_pretrained) and submit the result"
_PROMPTS: Final = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "ADAPTION_PROMPT", "CPT")
"""Kinds that add tokens and not weights: nothing of them can be merged."""


def adapter_problem(files: ModelFiles, tensors: Iterable[str] = ()) -> AdapterNotMerged | None:
    """Return the problem of a directory that holds an adapter, alone or beside a full model; None if it holds none.

    Args:
        tensors: the names in the weight files, where they are known already.

    Raises:
        UnsafeCheckpoint, InvalidModel: adapter_config.json can not be used.
    """
    names = files.names()
    config = files.read_json(ADAPTER_CONFIG) if ADAPTER_CONFIG in names else None
    inside = next((name for name in tensors if _TENSORS.search(name)), None)
    if inside is not None:
        return _unmerged(config, f"The model's weights hold an adapter ({inside[:120]})")
    found = sorted(name for name in names if _FILES.fullmatch(name))
    if config is None and not found:
        return None
    if _has_model(names):
        sign = ADAPTER_CONFIG if config is not None else found[0]
        return _beside(config, sign)
    return _unmerged(config, "The model is an adapter")


def _has_model(names: frozenset[str]) -> bool:
    return SINGLE in names or INDEX in names or any(name.startswith("pytorch_model") for name in names)


def _unmerged(config: dict[str, Any] | None, what: str) -> AdapterNotMerged:
    kind, base = _kind(config), _base(config)
    of = f" of {base}" if base else ""
    of_kind = f" ({kind})" if kind else ""
    model = base or "the base model"
    if kind in _PROMPTS:
        return AdapterNotMerged(
            detail=f"{what}{of_kind}{of}, which adds learned tokens to every prompt and is no model by itself.",
            hint=f"It can not be merged into weights: quantize {model}, and load the adapter beside the result.",
        )
    return AdapterNotMerged(
        detail=f"{what}{of_kind}{of}, which is no model by itself.",
        hint=f"{_MERGE}, or quantize {model}.",
    )


def _beside(config: dict[str, Any] | None, sign: str) -> AdapterNotMerged:
    kind, base = _kind(config), _base(config)
    named = f"an adapter{f' ({kind})' if kind else ''}{f' of {base}' if base else ''}"
    return AdapterNotMerged(
        detail=f"The directory holds a full model and {named} beside it ({sign[:80]}): it is not clear which is meant.",
        hint=f"{_MERGE}, or remove the adapter's files if the model alone is meant.",
    )


def _kind(config: dict[str, Any] | None) -> str | None:
    kind = (config or {}).get("peft_type") or (config or {}).get("fine_tune_type")
    return kind.upper() if isinstance(kind, str) and _KIND.fullmatch(kind) else None


def _base(config: dict[str, Any] | None) -> str | None:
    keys = ("base_model_name_or_path", "model", "model_name")
    base = next((config[key] for key in keys if config and config.get(key)), None)
    return base if isinstance(base, str) and _MODEL_ID.fullmatch(base) else None
