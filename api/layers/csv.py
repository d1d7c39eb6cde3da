"""Layer rows as comma-separated values (RFC 4180), one column for each field of the JSON row."""

import csv
import io
from collections.abc import Iterable

from jobs.job.views import LayerView


def csv_table(rows: Iterable[LayerView]) -> str:
    """Return a header line and one line for each row; null is written as an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(LayerView.model_fields))
    writer.writeheader()
    writer.writerows(row.model_dump(mode="json") for row in rows)
    return text.getvalue()
