"""A small read-only Hub: model info, file heads and contents, as the real client of huggingface_hub requests them.

:class:`Hub` holds the models and the planned faults (:class:`Fault`). A subclass of :class:`HubHandler` also accepts
writes.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".parquet", ".gz")
TOKEN = "hf_testtoken"  # noqa: S105 — opens nothing but this server


@dataclass
class HubModel:
    """A repository. ``access``: public, private (looks missing without the token) or gated.

    ``older`` holds earlier commits. ``card`` is the front matter of its README. Files named as in :data:`LFS` are LFS
    files, whose SHA-256 is in the metadata; ``claimed`` overrides the metadata of a file.
    """

    files: dict[str, bytes]
    sha: str = "a" * 40
    branches: tuple[str, ...] = ("main",)
    access: str = "public"
    older: dict[str, dict[str, bytes]] = field(default_factory=dict)
    claimed: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)

    def move(self, files: dict[str, bytes], sha: str) -> None:
        """Make a new commit on every branch; the one before can still be requested by its sha."""
        self.older[self.sha] = self.files
        self.files, self.sha = files, sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files."""
        if revision in {self.sha, *self.branches}:
            return self.sha, self.files
        return (revision, self.older[revision]) if revision in self.older else None


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of the next ``times`` requests whose "METHOD path" contains ``match``; "PART" for a part with an end.

    It is an error ``status`` with ``headers``, or a connection that breaks after ``cut_after`` bytes of the answer's
    body (for a subclass that reads bodies: of the request's). ``ignore_range`` answers with the whole file.
    """

    match: str
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    ignore_range: bool = False


@dataclass(frozen=True)
class Received:
    """One request as it arrived; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Hub:
    """The models and data sets that are served, and the requests that arrived."""

    models: dict[str, HubModel] = field(default_factory=dict)
    datasets: dict[str, HubModel] = field(default_factory=dict)
    url: str = ""
    received: list[Received] = field(default_factory=list)
    failing: bool = False
    faults: list[Fault] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def requests(self) -> list[str]:
        """Return all requests as "METHOD path"."""
        return [f"{request.method} {request.path}" for request in self.received]

    @property
    def downloads(self) -> list[str]:
        """Return the paths of files whose content was requested."""
        return [line.split(" ", 1)[1] for line in self.requests if line.startswith("GET") and "/resolve/" in line]

    def ranges(self, name: str) -> list[str]:
        """Return the Range headers of the requests for the contents of ``name``; empty for a whole file.

        Requests for a part with an end, which read a header, are not among them.
        """
        asked = [each for each in self.received if each.method == "GET" and each.path.endswith(f"/{name}")]
        return [found for each in asked if not _is_bounded(found := each.headers.get("range", ""))]

    def take_fault(self, line: str) -> Fault | None:
        """Return the first fault that matches "METHOD path", and use it up by one."""
        with self.lock:
            fault = next((fault for fault in self.faults if fault.match in line), None)
            if fault is not None:
                index = self.faults.index(fault)
                left = Fault(**{**fault.__dict__, "times": fault.times - 1})
                self.faults[index : index + 1] = [left] if left.times > 0 else []
        return fault


class HubHandler(BaseHTTPRequestHandler):
    """The handler of one connection's requests. Every ``do_*`` begins with :meth:`begin`."""

    served: Hub
    protocol_version = "HTTP/1.1"
    route: str
    fault: Fault | None
    body: bytes

    def do_GET(self) -> None:
        if self.begin():
            self.read_only()

    def do_POST(self) -> None:
        # Read first: what a refused request leaves unread would be taken for the next one.
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.begin():
            self.read_only()

    def do_HEAD(self) -> None:
        if self.begin():
            self.read_only()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — the base class's name
        """Log nothing."""

    def begin(self) -> bool:
        """Record the request and apply its fault; return False if it has been answered already."""
        self.route = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        line = f"{'PART' if _is_bounded(headers.get('range', '')) else self.command} {self.route}"
        with self.served.lock:
            self.served.received.append(Received(self.command, self.route, headers))
        self.fault = self.served.take_fault(line)
        if self.fault is not None and self.fault.status is not None:
            self.send(HTTPStatus(self.fault.status), b"", self.fault.headers)
            return False
        if self.served.failing:
            self.send(HTTPStatus.SERVICE_UNAVAILABLE)
            return False
        offered = self.headers.get("Authorization")
        if offered not in {None, f"Bearer {TOKEN}"}:
            self.send(
                HTTPStatus.UNAUTHORIZED, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"}
            )
            return False
        return True

    @property
    def authorized(self) -> bool:
        """Return whether the request has the right token."""
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def read_only(self) -> None:
        """Answer requests for info, trees, paths, access checks and files of models and data sets."""
        model_id, rest = self.split()
        served = self.served.datasets if self.of_dataset else self.served.models
        model = served.get(model_id)
        if model is None or (model.access == "private" and not self.authorized):
            self.refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")
        elif self.route.startswith("/api/") and rest != "auth-check":
            self._info(model_id, model, rest)
        elif model.access == "gated" and not self.authorized:
            self.refuse(HTTPStatus.FORBIDDEN, "GatedRepo")
        elif rest == "auth-check":
            self.send_json({})
        else:
            self._file(model, rest)

    def split(self) -> tuple[str, str]:
        """Return (``owner/name``, the rest) of the path."""
        path = self.route.removeprefix("/api/models/").removeprefix("/api").removeprefix("/datasets/")
        parts = path.strip("/").split("/")
        return "/".join(parts[:2]), "/".join(parts[2:])

    @property
    def of_dataset(self) -> bool:
        """Return whether the request is about a data set."""
        return self.route.startswith(("/datasets/", "/api/datasets/"))

    def send_json(self, value: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        """Send an answer in JSON."""
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: HTTPStatus, code: str) -> None:
        """Send an error in the Hub's form."""
        self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def send(self, status: HTTPStatus, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Send an answer. The body is left out for HEAD, and cut if the request's fault says so."""
        cut_after = None if self.fault is None else self.fault.cut_after
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut_after is None else body[:cut_after])
        if cut_after is not None:
            self.close_connection = True

    def _info(self, model_id: str, model: HubModel, rest: str) -> None:
        kind, _, revision = rest.partition("/")
        found = model.at(revision or "main")
        if found is None:
            self.refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
            return
        sha, files = found
        if kind == "tree":
            self.send_json([_tree_entry(model, name, content) for name, content in files.items()])
            return
        if kind == "paths-info":
            asked = parse_qs(self.body.decode()).get("paths", [])
            self.send_json([_tree_entry(model, name, files[name]) for name in asked if name in files])
            return
        siblings = [_sibling(model, name, content) for name, content in files.items()]
        info = {
            "id": model_id,
            "modelId": model_id,
            "sha": sha,
            "siblings": siblings,
            "tags": [],
            "cardData": model.card,
        }
        self.send_json(
            {**info, "private": model.access == "private", "gated": "manual" if model.access == "gated" else False}
        )

    def _file(self, model: HubModel, rest: str) -> None:
        _, revision, name = rest.split("/", 2)
        found = model.at(revision)
        content = None if found is None else found[1].get(name)
        if found is None or content is None:
            self.refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
            return
        headers = {"ETag": f'"{_sha256(content)}"', "X-Repo-Commit": found[0], "Accept-Ranges": "bytes"}
        start, end = self._range(len(content))
        if start is None:
            self.send(HTTPStatus.OK, content, headers)
        elif start < len(content):
            span = f"bytes {start}-{end - 1}/{len(content)}"
            self.send(HTTPStatus.PARTIAL_CONTENT, content[start:end], {**headers, "Content-Range": span})
        else:
            unsatisfied = {**headers, "Content-Range": f"bytes */{len(content)}"}
            self.send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", unsatisfied)

    def _range(self, size: int) -> tuple[int | None, int]:
        """Return the first byte that is asked for, None for the whole file, and the byte after the last one."""
        asked = self.headers.get("Range")
        if asked is None or (self.fault is not None and self.fault.ignore_range):
            return None, size
        first, _, last = asked.removeprefix("bytes=").partition("-")
        return int(first), min(size, int(last) + 1) if last else size


def _is_bounded(asked: str) -> bool:
    return asked != "" and not asked.endswith("-")


@contextmanager
def serve_hub(hub: Hub, handler: type[HubHandler] = HubHandler) -> Iterator[Hub]:
    """Serve ``hub`` on a loopback port until the block ends."""
    bound = type("Handler", (handler,), {"served": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
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


def git_blob_id(content: bytes) -> str:
    """Return git's id of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 — git's own


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob_id(model: HubModel, name: str, content: bytes) -> str:
    """Return the id of what git stores: for an LFS file the id of its pointer, which readers do not use."""
    if name.endswith(LFS):
        return git_blob_id(f"pointer to {name}".encode())
    return model.claimed.get(name) or git_blob_id(content)


def _sibling(model: HubModel, name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": _blob_id(model, name, content)}
    if name.endswith(LFS):
        sha256 = model.claimed.get(name) or _sha256(content)
        entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
    return entry


def _tree_entry(model: HubModel, name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": name,
        "size": len(content),
        "oid": _blob_id(model, name, content),
    }
    if name.endswith(LFS):
        sha256 = model.claimed.get(name) or _sha256(content)
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry
