"""Opaque page cursors: the sort key of the last item as URL-safe text. A foreign or changed one is a 422."""

import base64
import binascii
import json
import sys
from datetime import datetime
from typing import Any, Final

from jobs.kit.errors import InvalidQuery
from jobs.kit.storable import is_storable

JobKey = tuple[datetime, str]
LayerKey = tuple[float | None, str]

# No row of this service is older.
_FIRST_YEAR: Final = 2000
# A larger integer of JSON does not fit into PostgreSQL's double precision.
_LARGEST: Final = sys.float_info.max


def encode_job(created_at: datetime, job_id: str) -> str:
    """Return the cursor after this job."""
    return _encode([created_at.isoformat(), job_id])


def decode_job(cursor: str) -> JobKey:
    """Return (created_at, id) of a cursor. Raises: InvalidQuery."""
    match _decode(cursor):
        case [str(moment), str(job_id)] if is_storable(job_id):
            try:
                created_at = datetime.fromisoformat(moment)
            except ValueError:
                raise _foreign() from None
            # The cursor comes from the client, so its parts are checked before they reach the database.
            if created_at.tzinfo is not None and created_at.year >= _FIRST_YEAR:
                return created_at, job_id
    raise _foreign()


def encode_layer(sort: str, value: float | None, name: str) -> str:
    """Return the cursor after this layer, in this order."""
    return _encode([sort, value, name])


def decode_layer(cursor: str, sort: str) -> LayerKey:
    """Return (value, name) of a cursor. Raises: InvalidQuery, also if the cursor belongs to another ``sort``."""
    match _decode(cursor):
        case [str(of), (int() | float() | None) as value, str(name)] if of == sort and is_storable(name):
            if value is None:
                return None, name
            # In Python a bool is also an int.
            if not isinstance(value, bool) and abs(value) <= _LARGEST:
                return float(value), name
    raise _foreign()


def _encode(key: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(key, separators=(",", ":")).encode()).decode().rstrip("=")


def _decode(cursor: str) -> Any:
    try:
        # ``_encode`` removed the padding.
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return json.loads(raw, parse_constant=_refuse_constant)
    except (binascii.Error, ValueError, RecursionError):
        raise _foreign() from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _foreign() -> InvalidQuery:
    return InvalidQuery(
        "This is not a cursor of this list. Use the next_cursor of the previous page unchanged.", pointer="?after"
    )
