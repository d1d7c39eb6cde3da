"""The Hub's write API over :mod:`tests.hub_server`: repositories, branches, LFS uploads and commits, on loopback.

Faults are planned as in that module. A ``status`` is answered instead. ``cut_after`` breaks a PUT after that many bytes
of its body; any other request breaks after it was carried out, before its answer. ``on_commit`` runs just before a
commit is checked.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from math import ceil
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_server import Hub, HubHandler, HubModel, git_blob_id, serve_hub

_CHUNK = 1 << 14
_INITIAL = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass(frozen=True)
class Commit:
    """One commit of one repository."""

    sha: str
    parent: str | None
    message: str
    files: dict[str, bytes]


@dataclass
class Repository(HubModel):
    """A repository that can be written to; ``heads`` by branch. Every ``*.safetensors`` is an LFS file."""

    commits: dict[str, Commit] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a branch or sha names, and its files."""
        commit = self.commits.get(self.heads.get(revision, revision))
        return None if commit is None else (commit.sha, commit.files)

    def commit(self, files: dict[str, bytes], message: str, branch: str = "main") -> Commit:
        """A new head."""
        parent = self.heads.get(branch)
        digests = sorted((name, hashlib.sha256(content).hexdigest()) for name, content in files.items())
        sha = hashlib.sha1(repr((parent, message, digests, len(self.commits))).encode()).hexdigest()  # noqa: S324 — git's
        self.commits[sha] = Commit(sha, parent, message, files)
        self.heads[branch] = sha
        return self.commits[sha]

    def history(self, revision: str) -> Iterator[Commit]:
        """Return the commits, newest first."""
        sha: str | None = self.heads.get(revision, revision)
        while sha is not None:
            yield self.commits[sha]
            sha = self.commits[sha].parent


def new_repository(*, private: bool, files: dict[str, bytes] | None = None) -> Repository:
    """Make a repository as the Hub does: with a first commit."""
    repository = Repository(files={}, access="private" if private else "public")
    repository.commit({**_INITIAL, **(files or {})}, "initial commit")
    return repository


@dataclass
class WritableHub(Hub):
    """A hub that also stores LFS objects. Objects above ``part_bytes`` are uploaded in parts of that size.

    ``sent``: (address, bytes) of every PUT that arrived, complete or cut. A PUT to an address that contains ``held``
    stops after its first bytes and sets ``holding``, until :meth:`release` is called.
    """

    writable: frozenset[str] = frozenset({"me"})
    part_bytes: int = 1 << 20
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    sent: list[tuple[str, int]] = field(default_factory=list)
    on_commit: Callable[[Repository], None] | None = None
    held: str | None = None
    holding: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Let held PUTs continue."""
        self.held = None
        self.released.set()

    def repository(self, repo: str) -> Repository:
        """Return an existing repository."""
        found = self.models[repo]
        assert isinstance(found, Repository)
        return found

    def messages(self, repo: str, branch: str = "main") -> list[str]:
        """Return the messages of all commits, newest first."""
        return [commit.message for commit in self.repository(repo).history(branch)]

    @property
    def bytes_sent(self) -> int:
        """Return the sum of the bytes of all PUTs."""
        return sum(count for _, count in self.sent)


class UploadHandler(HubHandler):
    """Reads bodies before it answers, so that a connection can go on after an error."""

    served: WritableHub
    body: bytes

    def handle(self) -> None:
        with suppress(ConnectionError):  # of a client that was killed
            super().handle()

    def do_GET(self) -> None:  # noqa: N802 — the base class's name
        if not self.begin():
            return
        repo, rest = self.split()
        kind, _, revision = rest.partition("/")
        found = self.served.models.get(repo)
        if kind not in {"refs", "commits"} or not isinstance(found, Repository) or not self._may_see(found):
            self.read_only()
        elif kind == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in found.heads.items()
            ]
            self.send_json({"branches": branches, "converts": [], "tags": []})
        else:
            self.send_json([_shown(commit) for commit in found.history(revision)])

    def do_POST(self) -> None:  # noqa: N802 — the base class's name
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.begin():
            return
        if self.fault is not None and self.fault.cut_after is not None:
            self.send_json = self._say_nothing  # type: ignore[method-assign]  # carried out, and never answered
        with self.served.lock:
            self._post()

    def do_PUT(self) -> None:  # noqa: N802 — the base class's name
        """Store an upload; the address is presigned, so no token is needed."""
        self.route = unquote(urlsplit(self.path).path)
        fault = self.served.take_fault(f"PUT {self.route}")
        length = int(self.headers["Content-Length"])
        content = self._receive(length if fault is None or fault.cut_after is None else fault.cut_after)
        with self.served.lock:
            self.served.sent.append((self.path, len(content)))
        assert "Authorization" not in self.headers
        self.fault = None
        if len(content) < length:
            self.close_connection = True
            return
        if fault is not None and fault.status is not None:
            self.send(HTTPStatus(fault.status), b"", fault.headers)
            return
        oid = self.route.removeprefix("/storage/")
        part = parse_qs(urlsplit(self.path).query).get("part")
        with self.served.lock:
            if part is None:
                self._keep(oid, content)
            else:
                self.served.parts[oid, int(part[0])] = content
                self.send(HTTPStatus.OK, b"", {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'})

    def _receive(self, length: int) -> bytes:
        content = b""
        while len(content) < length:
            chunk = self.rfile.read(min(_CHUNK, length - len(content)))
            if not chunk:
                break
            content += chunk
            if self.served.held is not None and self.served.held in self.path:
                self.served.holding.set()
                self.served.released.wait(60)
        return content

    def _post(self) -> None:
        if not self.authorized and not self.route.startswith("/storage/"):
            self.refuse(HTTPStatus.UNAUTHORIZED, "Unauthorized")
        elif self.route == "/api/repos/create":
            self._create()
        elif self.route == "/api/validate-yaml":
            self.send_json({"warnings": [], "errors": []})
        elif self.route.startswith("/storage/"):
            self._complete(self.route.removeprefix("/storage/"))
        elif ".git/info/lfs/" in self.route:
            self._lfs(*self.route.strip("/").split(".git/info/lfs/"))
        else:
            self._write()

    def _write(self) -> None:
        repo, rest = self.split()
        kind, _, revision = rest.partition("/")
        found = self.served.models.get(repo)
        if not isinstance(found, Repository):
            self.refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")
        elif repo.split("/")[0] not in self.served.writable:
            self.refuse(HTTPStatus.FORBIDDEN, "Forbidden")
        elif kind == "branch":
            found.heads[revision] = found.heads["main"]
            self.send_json({})
        elif revision not in found.heads:
            self.refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        elif kind == "preupload":
            self._preupload(found, revision)
        else:
            self._commit(repo, found, revision)

    def _create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        url = f"{self.served.url}/{repo}"
        if asked["organization"] not in self.served.writable:
            self.refuse(HTTPStatus.FORBIDDEN, "Forbidden")
        elif repo in self.served.models:
            self.send_json({"error": "You already created this model repo", "url": url}, HTTPStatus.CONFLICT)
        else:
            self.served.models[repo] = new_repository(private=asked.get("visibility") == "private")
            self.send_json({"url": url, "name": repo})

    def _preupload(self, repository: Repository, revision: str) -> None:
        there = repository.commits[repository.heads[revision]].files
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            known = there.get(path)
            lfs = path.endswith(".safetensors")
            oid = None if known is None else hashlib.sha256(known).hexdigest() if lfs else git_blob_id(known)
            mode = "lfs" if lfs else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": path in repository.ignored, "oid": oid})
        self.send_json({"files": answers})

    def _lfs(self, repo: str, operation: str) -> None:
        asked = json.loads(self.body)
        if repo not in self.served.models:
            self.refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")
        elif operation == "objects/batch":
            objects = [self._actions(repo, each["oid"], each["size"]) for each in asked["objects"]]
            self.send_json({"transfer": "basic", "objects": objects})
        elif len(self.served.objects.get(asked["oid"], b"")) == asked["size"]:
            self.send_json({})
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "NotFound")

    def _actions(self, repo: str, oid: str, size: int) -> dict[str, Any]:
        if oid in self.served.objects:
            return {"oid": oid, "size": size}
        address = f"{self.served.url}/storage/{oid}"
        upload: dict[str, Any] = {"href": f"{address}?signature=presigned"}
        if size > self.served.part_bytes:
            count = ceil(size / self.served.part_bytes)
            parts = {str(number): f"{address}?signature=presigned&part={number}" for number in range(1, count + 1)}
            upload = {"href": address, "header": {"chunk_size": str(self.served.part_bytes), **parts}}
        verify = {"href": f"{self.served.url}/{repo}.git/info/lfs/verify"}
        return {"oid": oid, "size": size, "authenticated": True, "actions": {"upload": upload, "verify": verify}}

    def _complete(self, oid: str) -> None:
        numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        self._keep(oid, b"".join(self.served.parts[oid, number] for number in numbers))

    def _keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            self.refuse(HTTPStatus.BAD_REQUEST, "BadDigest")
            return
        self.served.objects[oid] = content
        self.send_json({})

    def _commit(self, repo: str, repository: Repository, revision: str) -> None:
        if self.served.on_commit is not None:
            self.served.on_commit(repository)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in {None, repository.heads[revision]}:
            self.refuse(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed")
            return
        files = dict(repository.commits[repository.heads[revision]].files)
        for line in lines[1:]:
            self._apply(files, line["key"], line["value"])
        commit = repository.commit(files, f"{header['summary']}\n\n{header['description']}", revision)
        url = f"{self.served.url}/{repo}/commit/{commit.sha}"
        self.send_json({"commitUrl": url, "commitOid": commit.sha, "success": True, "hookOutput": ""})

    def _apply(self, files: dict[str, bytes], key: str, value: dict[str, Any]) -> None:
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = self.served.objects[value["oid"]]
        else:
            del files[value["path"]]

    def _may_see(self, repository: Repository) -> bool:
        return repository.access != "private" or self.authorized

    def _say_nothing(self, *_: object) -> None:
        self.close_connection = True


def _shown(commit: Commit) -> dict[str, Any]:
    title, _, message = commit.message.partition("\n\n")
    return {
        "id": commit.sha,
        "title": title,
        "message": message,
        "authors": [{"user": "me"}],
        "date": "2026-01-01T00:00:00.000Z",
    }


@contextmanager
def serve_uploads(hub: WritableHub) -> Iterator[WritableHub]:
    """Serve ``hub`` on a loopback port until the block ends."""
    with serve_hub(hub, UploadHandler):
        yield hub
        hub.release()
