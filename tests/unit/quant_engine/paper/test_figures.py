"""Figures are PNG, the same bytes for the same report, and drawn without pyplot."""

import struct
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

from quant_engine.paper import profile_report
from quant_engine.paper.figures import draw_figures
from tests.unit.quant_engine.paper.reports import small_curves, small_report

PROFILE = profile_report("a", [0.5, 2.0, 1.0], [0.25, 4.0, 1.0])


def _size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_figures(small_report(), small_curves(), PROFILE, tmp_path_factory.mktemp("figures"))


def test_every_figure_is_drawn(drawn: list[Path]) -> None:
    assert [path.stem for path in drawn] == [
        "n1-error-by-alpha",
        "n2-error-by-quantile",
        "n3-heat-map",
        "t1-t2-training-curves",
        "t3-error-by-layer",
        "scale-profile",
    ]
    assert all(width > 400 and height > 300 for width, height in map(_size, drawn))


def test_a_figure_shows_what_the_report_says_whatever_the_settings(drawn: list[Path], tmp_path: Path) -> None:
    """Another error is another picture; the others are the same bytes."""
    report = small_report()
    report["T3"]["rows"][0]["error"] = 3.0
    with mpl.rc_context({"figure.dpi": 31, "lines.linewidth": 9.0}):
        again = draw_figures(report, small_curves(), PROFILE, tmp_path)
        assert mpl.rcParams["figure.dpi"] == 31
    changed = [a.stem for a, b in zip(drawn, again, strict=True) if a.read_bytes() != b.read_bytes()]
    assert changed == ["t3-error-by-layer"]


def test_a_grid_of_the_maximum_alone_and_no_training_can_be_drawn(tmp_path: Path) -> None:
    report, curves = small_report(), small_curves()
    report["families"]["N2"]["rows"] = [row for row in report["families"]["N2"]["rows"] if row["q"] == 1.0]
    curves["T1"][0]["curves"] = [[], []]
    assert len(draw_figures(report, curves, PROFILE, tmp_path)) == 6


def test_nothing_else_of_the_room_loads_matplotlib() -> None:
    code = "import sys, quant_engine.paper; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
