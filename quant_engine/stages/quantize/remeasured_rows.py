"""Measure layer rows again with the exported weights. Shapes: O output and I input channels."""

from collections.abc import Sequence
from pathlib import Path

from quant_engine.evaluation.report import with_errors
from quant_engine.interface.layers import LayerRow
from quant_engine.stages.context.run import Run
from quant_engine.stages.open_site import OpenSite
from quant_engine.stages.quantize.block_files import Plans, stored_weights, unfused_rows
from quant_engine.stages.stage import read_rows, write_rows


def remeasure(
    run: Run,
    block: int,
    plans: Plans,
    rows: Sequence[LayerRow],
    records: Path,
    directory: Path,
    *,
    every: bool = False,
) -> None:
    """Write and report the rows of a block's sites that are not rounded to nearest, measured on test tokens.

    ``select`` measured them rounded to nearest, because every choice is made that way.

    Args:
        directory: has the block's file, and receives the rows.
        every: whether the rows of sites that are rounded to nearest are measured too.
    """
    known = {row.name: row for row in rows}
    for site in run.sites:
        known_already = run.settings[site.name].weights.rounding == "rtn" and not every
        if site.block != block or known_already:
            continue
        path = _path(directory, site.name)
        if not path.is_file():
            opened = OpenSite(run, site, records)
            rounded = {
                name: w_OI.to(run.model.device, run.model.dtype)
                for name, w_OI in stored_weights(run, directory, block, plans).items()
            }
            # The record holds the site's original input and the errors compare with the original linear. A diagonal
            # that was fused into the linear's rows would count as an error.
            original = unfused_rows(run, block, plans, rounded)
            weights = [original[f"{reader}.weight"] for reader in site.readers]
            errors = opened.final_errors(opened.record.test_ED, plans[site.name], weights)
            measured = [with_errors(known[name], each) for name, each in zip(site.readers, errors, strict=True)]
            write_rows(path, measured)
        # Reported from the file also when an earlier attempt wrote it: the observer needs every row.
        for row in read_rows(path):
            run.observer.layer_completed(row)


def final_rows(run: Run, rows: Sequence[LayerRow], quantized: Path) -> list[LayerRow]:
    """``rows``, in which rows that were measured again replace the older ones."""
    paths = [_path(quantized, site.name) for site in run.sites]
    found = {row.name: row for path in paths if path.is_file() for row in read_rows(path)}
    return [found.get(row.name, row) for row in rows]


def _path(directory: Path, site: str) -> Path:
    return directory / f"{site}.rows.json"
