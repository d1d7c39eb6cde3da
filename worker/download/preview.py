"""A model of the Hub before its weights: its small files, and weight files that hold nothing but their headers.

A job that can not succeed is refused on this, before gigabytes are downloaded.
"""

import json
import struct
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from huggingface_hub.utils._safetensors import SafetensorsFileMetadata

from quant_engine.model_files.headers import corrupt

WEIGHTS: Final = ".safetensors"


def write_header(api: HfApi, model_id: str, revision: str, name: str, directory: Path) -> None:
    """Write a file of the right form that has the header of the Hub's file and, in place of the weights, a hole.

    Raises:
        InvalidModel: the Hub's file is no safetensors file.
        HfHubHTTPError, httpx.HTTPError: the Hub refused or did not answer.
    """
    try:
        metadata = api.parse_safetensors_file_metadata(model_id, name, revision=revision)
    except (SafetensorsParsingError, NotASafetensorsRepoError) as error:
        raise corrupt(name, "its header can not be read") from error
    header, end = _header(metadata)
    with (directory / name).open("wb") as target:
        target.write(struct.pack("<Q", len(header)) + header)
        # No disk space is used for what is not written.
        target.truncate(8 + len(header) + end)


def _header(metadata: SafetensorsFileMetadata) -> tuple[bytes, int]:
    entries = {
        name: {"dtype": str(info.dtype), "shape": list(info.shape), "data_offsets": list(info.data_offsets)}
        for name, info in metadata.tensors.items()
    }
    end = max((info.data_offsets[1] for info in metadata.tensors.values()), default=0)
    return json.dumps(entries).encode(), end
