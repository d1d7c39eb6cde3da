"""Calibration: cut text into windows of tokens, and record the input of every site in one pass over the blocks."""

from quant_engine.calibration.capture import Recording, Split, capture_records, split_samples
from quant_engine.calibration.chat import ChatRenderer
from quant_engine.calibration.cutting import calibration_windows, evaluation_windows
from quant_engine.calibration.datasets import dataset_documents, dataset_names
from quant_engine.calibration.documents import Document
from quant_engine.calibration.generate import self_windows
from quant_engine.calibration.records import (
    RESERVOIR_TOKENS,
    SiteRecord,
    read_record,
    record_bytes,
    write_record,
)
from quant_engine.calibration.tokens import (
    NO_BEGINNING,
    Beginning,
    TokenizedDocument,
    check_ids,
    load_tokenizer,
    special_beginning,
    tokenized,
)
from quant_engine.interface.datasets import Purpose, characters_for

__all__ = [
    "NO_BEGINNING",
    "RESERVOIR_TOKENS",
    "Beginning",
    "ChatRenderer",
    "Document",
    "Purpose",
    "Recording",
    "SiteRecord",
    "Split",
    "TokenizedDocument",
    "calibration_windows",
    "capture_records",
    "characters_for",
    "check_ids",
    "dataset_documents",
    "dataset_names",
    "evaluation_windows",
    "load_tokenizer",
    "read_record",
    "record_bytes",
    "self_windows",
    "special_beginning",
    "split_samples",
    "tokenized",
    "write_record",
]
