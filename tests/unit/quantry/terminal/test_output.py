"""Tables, progress and lines, as a person reads them."""

import csv
import io
from typing import Any

from rich.console import Console, RenderableType

from quantry.results import Eta, Event, Layer, Progress
from quantry.terminal.tables import layer_table, layers_as_csv, print_layers, summary_table
from quantry.terminal.watch import View, count, eta, follow, open_view, phase
from tests.unit.quantry.conftest import job_body

LAYER = Layer(
    name="model.layers.11.mlp.down_proj",
    block=11,
    role="down_proj",
    scheme="W4A4",
    transform="smooth_rotation",
    alpha=0.5,
    statistic="learned",
    error=12.345,
    baseline_error=20.0,
    gain_percent=38.3,
    rtn_error=None,
    sqnr_db=17.25,
    selected="critical",
)


def rendered(thing: RenderableType, width: int = 140) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_layer_is_one_row() -> None:
    text = rendered(layer_table([LAYER], wide=True))
    row = next(line for line in text.splitlines() if "down_proj" in line)
    for part in ("* 11", "smooth rotation", "learned", "0.5", "12.35", "20", "+38.3%", "—", "17.2 dB"):
        assert part in row
    assert "* (critical)" in text


def test_a_layer_is_one_line_of_eighty_columns() -> None:
    searched = LAYER.model_copy(update={"statistic": "quantile(0.997)", "alpha": 0.475, "error": 123456.7})
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    print_layers([searched, searched], console)
    assert isinstance(console.file, io.StringIO)
    rows = [line for line in console.file.getvalue().splitlines() if "down_proj" in line]
    assert len(rows) == 2
    assert all(part in rows[0] for part in ("quantile(0.997)", "1.235e5", "+38.3%"))


def test_the_summary_compares_before_and_after() -> None:
    summary: dict[str, Any] = {
        "selected_mean_error": 70.0,
        "baseline_selected_mean_error": 100.0,
        "full_mean_error": 8.0,
        "baseline_full_mean_error": 10.0,
        "gain_percent": {"selected": 30.0, "full": 20.0},
        "perplexity": {"original": 20.0, "quantized": 25.0},
        "bytes": {"original": 500_000_000, "quantized": 100_000_000},
    }
    lines = rendered(summary_table(summary)).splitlines()
    rows = {
        label: next(line for line in lines if label in line) for label in ("selected", "all", "perplexity", "bytes")
    }
    assert all(part in rows["selected"] for part in ("100", "70", "-30.0%"))
    assert all(part in rows["all"] for part in ("10", "8", "-20.0%"))
    assert "× 1.250" in rows["perplexity"]
    assert "× 0.200" in rows["bytes"]


def test_no_change_has_no_sign_of_loss() -> None:
    unchanged = {"full_mean_error": 1.0, "baseline_full_mean_error": 1.0, "gain_percent": {"full": 1e-9}}
    assert "+0.0%" in rendered(summary_table(unchanged))


def test_a_summary_without_perplexity_has_no_such_row() -> None:
    assert "perplexity" not in rendered(summary_table({"perplexity": None}))


def test_csv_has_the_contracts_columns() -> None:
    (row,) = csv.DictReader(io.StringIO(layers_as_csv([LAYER])))
    assert row["name"] == "model.layers.11.mlp.down_proj"
    assert row["error"] == "12.345"
    assert row["rtn_error"] == ""


def test_phases_counts_and_times() -> None:
    progress = Progress(fraction=0.5, stage="train", unit="layer", done=13, total=30, eta_seconds=Eta(p50=126, p90=170))
    assert phase("running", progress) == "train"
    assert phase("running", Progress()) == "starting"
    assert phase("queued", Progress(queue_position=1)) == "queued, next"
    assert phase("queued", Progress(queue_position=2)) == "queued, place 2"
    assert phase("cancelling", progress) == "cancelling"
    assert count(progress) == "13/30 layers"
    assert count(Progress(done=0, total=1, unit="model")) == "0/1 model"
    assert eta(progress) == "about 2:06 left"
    assert (count(Progress()), eta(Progress())) == ("", "")


EVENTS = [
    Event(id=1, type="job.status", data={"status": "running"}),
    Event(id=2, type="stage.status", data={"name": "load", "status": "running"}),
    Event(id=3, type="stage.status", data={"name": "load", "status": "succeeded", "seconds": 1.5}),
    Event(id=4, type="progress", data={"fraction": 0.41, "stage": "train", "unit": "layer", "done": 13, "total": 30}),
    Event(id=5, type="progress", data={"fraction": 0.42, "stage": "train", "unit": "layer", "done": 14, "total": 30}),
    Event(id=6, type="done", data={"status": "succeeded"}),
]


def shown(*, terminal: bool) -> str:
    console = Console(width=120, file=io.StringIO(), force_terminal=terminal, color_system=None)
    with open_view(console) as view:
        assert isinstance(view, View)
        follow(iter(EVENTS), view, "queued", Progress(**job_body()["progress"]))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pipe_gets_plain_lines_and_not_too_many() -> None:
    lines = shown(terminal=False).splitlines()
    assert "  load: succeeded in 1.5 s" in lines
    assert " 41%  train  13/30 layers" in lines
    assert not any("14/30" in line for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_a_terminal_gets_a_live_bar() -> None:
    text = shown(terminal=True)
    assert "14/30 layers" in text
    assert "42%" in text
    assert "\x1b" in text
