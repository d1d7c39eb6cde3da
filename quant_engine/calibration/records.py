"""Write and read the calibration record of a site: ``<name>.safetensors`` has the tensors, ``<name>.json`` the numbers.

Shapes: D features, P statistic channels, F fit, V validation and E test tokens.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from quant_engine.atomic_write import atomic_write
from quant_engine.errors import disk_full_as_error
from quant_engine.models import Site
from quant_engine.transforms import ChannelStatistics

RESERVOIR_TOKENS: Final = 8192
"""The largest number of tokens of each split in a record."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteRecord:
    """The data about a site's input that every later stage uses, in fp32.

    Attributes:
        statistics: of the whole training split; on pooled channels where heads are tied (:meth:`Site.pool`).
        fit_FD, validation_VD, test_ED: the stored tokens of each split.
        input_absmax, input_kurtosis: over the training split.
    """

    statistics: ChannelStatistics
    fit_FD: Tensor
    validation_VD: Tensor
    test_ED: Tensor
    input_absmax: float
    input_kurtosis: float


def write_record(directory: Path, site: Site, record: SiteRecord) -> None:
    """Write the record's two files; each is complete or absent.

    Raises:
        DiskFull: the disk filled up.
    """
    stats = record.statistics
    tensors = {
        "absmax": stats.absmax_D,
        "l2": stats.l2_D,
        "fit": record.fit_FD,
        "validation": record.validation_VD,
        "test": record.test_ED,
    }
    # repr() of a float is exact, so that a reader finds the same key.
    tensors |= {f"quantile.{q!r}": value for q, value in stats.quantiles.items()}
    tensors |= {f"norm.{p!r}": value for p, value in stats.norms.items()}
    numbers = {
        "site": site.name,
        "tokens": stats.tokens,
        "quantiles": sorted(stats.quantiles),
        "norms": sorted(stats.norms),
        "input_absmax": record.input_absmax,
        "input_kurtosis": record.input_kurtosis,
    }
    with disk_full_as_error(f"the calibration record of {site.name}"):
        with atomic_write(_path(directory, site)) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        with atomic_write(_path(directory, site).with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(numbers, indent=1))


def read_record(directory: Path, site: Site) -> SiteRecord:
    """Read a record; its token tensors are memory-mapped."""
    path = _path(directory, site)
    numbers = json.loads(path.with_suffix(".json").read_text())
    with safe_open(path, framework="pt") as file:
        return SiteRecord(
            statistics=_statistics(file, numbers),
            fit_FD=file.get_tensor("fit"),
            validation_VD=file.get_tensor("validation"),
            test_ED=file.get_tensor("test"),
            input_absmax=numbers["input_absmax"],
            input_kurtosis=numbers["input_kurtosis"],
        )


def record_bytes(site: Site, kept_tokens: int, statistics: int) -> int:
    """Return the size of a site's record on disk, including its header and numbers.

    Args:
        kept_tokens: of all splits together.
        statistics: how many there are besides absmax and L2.
    """
    channels = site.features // site.tied
    # Four bytes for each fp32 number, and a page for the header and the JSON file.
    return 4 * (site.features * kept_tokens + channels * (2 + statistics)) + 4096


def _path(directory: Path, site: Site) -> Path:
    return directory / f"{site.name}.safetensors"


def _statistics(file: safe_open, numbers: dict[str, Any]) -> ChannelStatistics:
    return ChannelStatistics(
        absmax_D=file.get_tensor("absmax"),
        l2_D=file.get_tensor("l2"),
        quantiles={q: file.get_tensor(f"quantile.{q!r}") for q in numbers["quantiles"]},
        norms={p: file.get_tensor(f"norm.{p!r}") for p in numbers["norms"]},
        tokens=numbers["tokens"],
    )
