"""A Hub small enough to read: model info, file heads and contents, as huggingface_hub's real client asks for them."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_testtoken"  # noqa: S105 — opens nothing but this server


@dataclass
class HubModel:
    """A repository with one commit. ``access``: public, private (looks missing without the token) or gated."""

    files: dict[str, bytes]
    sha: str = "a" * 40
    branches: tuple[str, ...] = ("main",)
    access: str = "public"


@dataclass
class Hub:
    """What is served, and what was asked for."""

    models: dict[str, HubModel] = field(default_factory=dict)
    url: str = ""
    requests: list[str] = field(default_factory=list)
    failing: bool = False

    @property
    def downloads(self) -> list[str]:
        """Paths of files whose content was sent."""
        return [line.split(" ", 1)[1] for line in self.requests if line.startswith("GET") and "/resolve/" in line]


@contextmanager
def serve_hub(hub: Hub) -> Iterator[Hub]:
    """Serve ``hub`` on a loopback port until the block ends."""

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — the base class's name
        """Stay silent."""

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.served.requests.append(f"{self.command} {path}")
        if self.served.failing:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, b"", {}, with_body)
            return
        model_id, rest = self._split(path)
        model = self.served.models.get(model_id)
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if model is None or (model.access == "private" and not authorized):
            self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound", with_body)
        elif path.startswith("/api/models/"):
            self._info(model_id, model, rest, with_body)
        elif model.access == "gated" and not authorized:
            self._refuse(HTTPStatus.FORBIDDEN, "GatedRepo", with_body)
        else:
            self._file(model, rest, with_body)

    def _split(self, path: str) -> tuple[str, str]:
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        return "/".join(parts[:2]), "/".join(parts[2:])

    def _info(self, model_id: str, model: HubModel, rest: str, with_body: bool) -> None:
        kind, _, revision = rest.partition("/")
        if revision not in {model.sha, *model.branches}:
            self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound", with_body)
            return
        if kind == "tree":
            blobs = {name: hashlib.sha1(content).hexdigest() for name, content in model.files.items()}  # noqa: S324 — git's
            tree = [
                {"type": "file", "path": name, "size": len(model.files[name]), "oid": oid}
                for name, oid in blobs.items()
            ]
            self._send(HTTPStatus.OK, json.dumps(tree).encode(), {"Content-Type": "application/json"}, with_body)
            return
        siblings = [{"rfilename": name, "size": len(content)} for name, content in model.files.items()]
        info = {"id": model_id, "modelId": model_id, "sha": model.sha, "siblings": siblings, "tags": []}
        info |= {"private": False, "gated": model.access == "gated" and "manual"}
        self._send(HTTPStatus.OK, json.dumps(info).encode(), {"Content-Type": "application/json"}, with_body)

    def _file(self, model: HubModel, rest: str, with_body: bool) -> None:
        name = rest.split("/", 2)[2]
        content = model.files.get(name)
        if content is None:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", with_body)
            return
        etag = hashlib.sha256(content).hexdigest()
        self._send(HTTPStatus.OK, content, {"ETag": f'"{etag}"', "X-Repo-Commit": model.sha}, with_body)

    def _refuse(self, status: HTTPStatus, code: str, with_body: bool) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, with_body)

    def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)
