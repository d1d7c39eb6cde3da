"""The errors that only HTTP can cause. ``jobs.kit.errors`` shows the rest of the tree.

QuantryError
├── MalformedJson            400 malformed_json
│   └── BodyTooComplex       413 body_too_complex
├── ForeignOrigin            403 foreign_origin
├── BodyTimeout              408 request_timeout          (Connection)
├── LengthRequired           411 length_required
├── TargetTooLong            414 uri_too_long
├── UnsupportedMediaType     415 unsupported_media_type   (Accept)
├── UnsatisfiableRange       416 range_not_satisfiable    (Content-Range)
├── MisdirectedRequest       421 misdirected_request
├── HeadersTooLarge          431 headers_too_large
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


class BodyTooComplex(MalformedJson):
    """The JSON has more values, members or levels than any request needs."""

    status = 413
    code = "body_too_complex"
    title = "Body too complex"


class LengthRequired(QuantryError):
    """A large body without Content-Length."""

    status = 411
    code = "length_required"
    title = "Length required"

    def __init__(self, limit: int) -> None:
        super().__init__(f"A body of more than {limit} bytes needs a Content-Length. Send one, not chunks.")


class BodyTimeout(QuantryError):
    """The body did not arrive in time."""

    status = 408
    code = "request_timeout"
    title = "Request timeout"

    def __init__(self, seconds: float) -> None:
        # The rest of the body may still arrive, so the connection is of no more use.
        super().__init__(
            f"The body did not arrive within {seconds:g} s. Send the request again over a faster connection.",
            headers={"Connection": "close"},
        )


class TargetTooLong(QuantryError):
    """The path and the query string together are too long."""

    status = 414
    code = "uri_too_long"
    title = "URI too long"

    def __init__(self, limit: int) -> None:
        super().__init__(f"Path and query have more than {limit} bytes. Send fewer or shorter parameters.")


class HeadersTooLarge(QuantryError):
    """The headers are too many or too long."""

    status = 431
    code = "headers_too_large"
    title = "Headers too large"

    def __init__(self, count: int, limit: int) -> None:
        super().__init__(f"There are more than {count} headers, or more than {limit} bytes of them. Send fewer.")


class MisdirectedRequest(QuantryError):
    """The Host header names no host of this service."""

    status = 421
    code = "misdirected_request"
    title = "Misdirected request"

    def __init__(self) -> None:
        super().__init__(
            "This service does not answer to the host name of this request, or the request has not exactly one. Use "
            "localhost or 127.0.0.1, or ask the operator to add the name to QUANTRY_ALLOWED_HOSTS."
        )


class ForeignOrigin(QuantryError):
    """A web page of another origin tries to change something."""

    status = 403
    code = "foreign_origin"
    title = "Foreign origin"

    def __init__(self) -> None:
        super().__init__(
            "A web page of another origin may not change anything here. Use a page that this service serves, or ask "
            "the operator to add the page's origin to QUANTRY_ALLOWED_ORIGINS."
        )
