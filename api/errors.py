"""The errors that only HTTP can cause. ``jobs.kit.errors`` shows the rest of the tree.

QuantryError
├── MalformedJson            400 malformed_json
├── UnsupportedMediaType     415 unsupported_media_type   (Accept)
├── UnsatisfiableRange       416 range_not_satisfiable    (Content-Range)
└── InvalidFields            422 invalid_request          (one entry for each field)
"""

from jobs.kit.errors import FieldError, QuantryError


class MalformedJson(QuantryError):
    """The body is not one interoperable JSON value."""

    status = 400
    code = "malformed_json"
    title = "Malformed JSON"


class UnsupportedMediaType(QuantryError):
    """The Content-Type of the body is not JSON."""

    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"

    def __init__(self) -> None:
        super().__init__(
            "The body must be JSON. Send it with 'Content-Type: application/json'.",
            headers={"Accept": "application/json"},
        )


class UnsatisfiableRange(QuantryError):
    """The ``Range`` is outside the file."""

    status = 416
    code = "range_not_satisfiable"
    title = "Range not satisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(
            f"The file has {size} bytes. Ask for a range inside it, or leave Range out.",
            headers={"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"},
        )


class InvalidFields(QuantryError):
    """Fields of the body, or parameters, that do not fit their types."""

    status = 422
    code = "invalid_request"
    title = "Invalid request"

    def __init__(self, errors: tuple[FieldError, ...]) -> None:
        super().__init__(
            f"{len(errors)} {'field does' if len(errors) == 1 else 'fields do'} not fit; "
            "correct what 'errors' points at. /openapi.json has the types.",
            errors=errors,
        )
