"""The endpoints ``/docs``: Swagger UI and its files. A browser that opens the page asks no other server for anything.

The files are those of the package ``fastapi-standalone-docs``; the page around them is ours. Its policy (CSP) allows
scripts and styles of this origin only, and none inside the page.
"""

from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Quantry</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# Without ``validatorUrl`` Swagger UI may ask a public server whether the document is valid.
_START: Final = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
"""
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
_TYPES: Final = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
}

router = APIRouter(prefix="/docs", include_in_schema=False)


@router.get("")
async def page() -> Response:
    """Return the page. Its URLs are relative, so that it also works below a path of a proxy."""
    return HTMLResponse(_PAGE, headers=_HEADERS)


@router.get("/start.js")
async def start() -> Response:
    """Return the script that starts Swagger UI."""
    return Response(_START, media_type="text/javascript; charset=utf-8", headers=_HEADERS)


@router.get("/{name}")
def asset(name: str) -> Response:
    """Return a file of Swagger UI."""
    if name not in _TYPES:
        raise HTTPException(404)
    content = (files("fastapi_standalone_docs") / "static" / "swagger" / name).read_bytes()
    headers = {**_HEADERS, "Cache-Control": "private, max-age=3600"}
    return Response(content, media_type=_TYPES[name], headers=headers)
