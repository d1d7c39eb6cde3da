"""The columns of a layer are one list, which the engine holds to and the client reads with tolerance."""

import csv
import io
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import ValidationError

from api.layers.csv import csv_table
from jobs.job.views import LayerView
from jobs.repository.models import JobLayer
from quant_engine.interface.layers import UNMEASURED, LayerRow
from quantry.results import Layer
from quantry.terminal.tables import layers_as_csv

_ROW: dict[str, Any] = UNMEASURED | {
    "name": "model.layers.0.mlp.down_proj",
    "block": 0,
    "role": "feed_forward_inner",
    "scheme": "W4A4",
    "transform": "none",
    "parameters": 12,
    "bytes": 6,
}
COLUMNS = list(LayerRow.model_fields)


def test_the_table_of_the_database_has_the_columns_of_the_type() -> None:
    columns = [column for column in JobLayer.__table__.columns if column.name != "job_id"]
    assert [column.name for column in columns] == COLUMNS
    row = LayerRow.model_validate(_ROW)
    assert [column.name for column in columns if column.nullable] == [
        name for name, value in row.model_dump().items() if value is None
    ]


def test_every_column_of_the_database_has_the_type_of_its_field() -> None:
    columns = {column.name: column.type.python_type for column in JobLayer.__table__.columns if column.name != "job_id"}
    assert columns == {name: _kind(field.annotation) for name, field in LayerRow.model_fields.items()}


def _kind(annotation: Any) -> Any:
    """The type of a field, without null; of a choice between words, text."""
    (kind,) = (each for each in get_args(annotation) or (annotation,) if each is not NoneType)
    return str if get_origin(kind) is Literal else kind


def test_every_reader_has_the_same_columns_in_the_same_order() -> None:
    assert list(LayerView.model_fields) == list(Layer.model_fields) == COLUMNS
    for text in (csv_table([LayerView(**_ROW)]), layers_as_csv([Layer(**_ROW)])):
        (read,) = csv.DictReader(io.StringIO(text))
        assert list(read) == COLUMNS
        assert read == {name: "" if value is None else str(value) for name, value in _ROW.items()}


@pytest.mark.parametrize("fields", [_ROW | {"more": 1}, {"name": "x"}, _ROW | {"selected": "other"}])
def test_the_engine_reports_exactly_the_columns(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LayerRow.model_validate(fields)


def test_a_row_can_not_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        LayerRow(**_ROW).error = 1.0  # type: ignore[misc]  # what is tested


def test_the_client_reads_rows_of_other_releases() -> None:
    newer = Layer.model_validate(_ROW | {"more": 1, "selected": "other"})
    assert (newer.model_dump()["more"], newer.selected) == (1, "other")
    required = {name: _ROW[name] for name in ("name", "block", "role", "scheme", "transform")}
    assert Layer.model_validate(required).model_dump() == UNMEASURED | required | {"parameters": None, "bytes": None}
