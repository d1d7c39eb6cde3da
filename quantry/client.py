"""The Python client of the HTTP API: ``Quantry("http://127.0.0.1:8000").submit(...)``."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from quant_engine.policy import JobRequest
from quantry.download import OnBytes, download_archive, download_artifact
from quantry.errors import QuantryError, error_from_response
from quantry.results import Artifact, Credential, Event, Job, Layer, Publication
from quantry.sse import ServerSentEvent, parse_events
from quantry.transport import Transport, backoff_seconds, repeat_after_seconds, retry_after_seconds
from quantry.webhook_calls import Webhooks

_STREAM_TIMEOUT_SECONDS: Final = 45.0  # three heartbeats of the service
_LONGEST_POLL_SECONDS: Final = 5.0
_PAGE: Final = 100


class Quantry:
    """A client of one Quantry service, to be used as a context manager or closed.

    Every method can raise :class:`QuantryError`.
    """

    def __init__(
        self, base_url: str, api_key: str | None = None, *, timeout_seconds: float = 30.0, retries: int = 5
    ) -> None:
        self._transport = Transport(base_url, api_key, timeout_seconds=timeout_seconds, retries=retries)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def submit(self, request: JobRequest | Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Create a job. With an ``idempotency_key`` of your own, another process can repeat the call safely."""
        body = _body_of(request)
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        return Job.model_validate(self._json("POST", "/v1/jobs", json=body, headers=headers))

    def get(self, job_id: str) -> Job:
        """Return the job as it is now."""
        return Job.model_validate(self._json("GET", f"/v1/jobs/{job_id}"))

    def jobs(self, *, status: str | None = None, metadata: Mapping[str, str] | None = None) -> Iterator[Job]:
        """Yield the jobs, newest first, optionally only those with this status and these metadata."""
        params = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
        if status is not None:
            params["status"] = status
        return map(Job.model_validate, self._pages("/v1/jobs", params))

    def cancel(self, job_id: str) -> Job:
        """Cancel a job. Its status is ``cancelling`` until its worker has stopped."""
        return Job.model_validate(self._json("POST", f"/v1/jobs/{job_id}/cancel"))

    def retry(self, job_id: str, *, from_stage: str | None = None) -> Job:
        """Queue a failed or cancelled job again; its stages from ``from_stage`` on are computed anew."""
        body = {} if from_stage is None else {"from_stage": from_stage}
        return Job.model_validate(self._json("POST", f"/v1/jobs/{job_id}/retry", json=body))

    def delete(self, job_id: str) -> None:
        """Delete a finished job and its artifacts."""
        self._transport.request("DELETE", f"/v1/jobs/{job_id}")

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """Yield the job's events with an id above ``after``, live and each once, until the event ``done``.

        A broken stream is resumed where it broke.

        Raises:
            QuantryError: ``connection_lost``, after several attempts that brought no event.
        """
        failures = 0
        while True:
            before = after
            pause: float | None = None
            try:
                for event, told in self._stream(job_id, after, failures):
                    after, pause = event.id, told
                    yield event
                    if event.type == "done":
                        return
            except httpx.TransportError as error:
                # Only attempts without any event count: a stream that breaks again and again still makes progress.
                failures = 0 if after > before else failures + 1
                if failures > self._transport.retries:
                    raise _stream_lost(job_id, error) from error
            else:
                failures = 0
                # The server may end a stream at any time. Without "done", the job shows if more events can come.
                if after == before and self.get(job_id).is_terminal:
                    return
            self._transport.sleep(backoff_seconds(failures) if pause is None else pause)

    def wait(self, job_id: str, *, timeout_seconds: float | None = None) -> Job:
        """Wait until the job is terminal, with any status, and return it.

        Raises:
            QuantryError: ``timeout``; the job continues.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        # With an ETag, the service answers 304 without a body while nothing has changed.
        etag, job = "", None
        while True:
            response = self._transport.request(
                "GET", f"/v1/jobs/{job_id}", headers={"If-None-Match": etag} if etag else None
            )
            if response.status_code != httpx.codes.NOT_MODIFIED:
                etag, job = response.headers.get("ETag", ""), Job.model_validate(_decoded(response))
            if job is not None and job.is_terminal:
                return job
            if deadline is not None and time.monotonic() >= deadline:
                raise QuantryError("timeout", f"{job_id} has not ended after {timeout_seconds:g} s; it goes on.")
            self._transport.sleep(min(retry_after_seconds(response) or 1.0, _LONGEST_POLL_SECONDS))

    def layers(self, job_id: str, *, sort: str | None = None) -> list[Layer]:
        """Return all layer rows, ordered by ``sort`` (``-error``: the largest error first)."""
        params = {} if sort is None else {"sort": sort}
        return [Layer.model_validate(row) for row in self._pages(f"/v1/jobs/{job_id}/layers", params)]

    def layers_csv(self, job_id: str) -> str:
        """Return all layer rows as comma-separated values, with a header."""
        return self._transport.request("GET", f"/v1/jobs/{job_id}/layers", headers={"Accept": "text/csv"}).text

    def report(self, job_id: str) -> dict[str, Any]:
        """Return the whole evaluation of a finished job."""
        return self._json("GET", f"/v1/jobs/{job_id}/report")

    def artifacts(self, job_id: str) -> list[Artifact]:
        """Return the artifacts of a finished job."""
        return [Artifact.model_validate(row) for row in self._pages(f"/v1/jobs/{job_id}/artifacts", {})]

    def download(self, job_id: str, directory: Path, *, on_bytes: OnBytes | None = None) -> list[Path]:
        """Download all artifacts to ``directory`` and return their paths.

        An interrupted transfer is resumed. Each file is checked by its digest, and gets its name when it is complete.
        Intact files that are there already are not fetched again.
        """
        report = on_bytes or _ignore
        return [download_artifact(self._transport, artifact, directory, report) for artifact in self.artifacts(job_id)]

    def archive(self, job_id: str, target: Path) -> Path:
        """Download the checkpoint directory as one tar file to ``target``."""
        return download_archive(self._transport, f"/v1/jobs/{job_id}/archive", target)

    def add_credential(self, name: str, token: str) -> Credential:
        """Store a Hub token. After that, it can be used and removed, but not read."""
        body = {"name": name, "kind": "hub", "token": token}
        return Credential.model_validate(self._json("POST", "/v1/credentials", json=body))

    def credentials(self) -> Iterator[Credential]:
        """Yield the stored credentials, newest first, without their tokens."""
        return map(Credential.model_validate, self._pages("/v1/credentials", {}))

    def delete_credential(self, credential_id: str) -> None:
        """Delete a stored Hub token from the service."""
        self._transport.request("DELETE", f"/v1/credentials/{credential_id}")

    def publish(
        self, job_id: str, repo: str, *, private: bool = True, revision: str = "main", credential: str | None = None
    ) -> Publication:
        """Start to push a succeeded job's checkpoint to ``repo`` on the Hub; follow it with :meth:`publishing`."""
        body = {"repo": repo, "private": private, "revision": revision, "credential": credential}
        return Publication.model_validate(self._json("POST", f"/v1/jobs/{job_id}/publications", json=body))

    def publications(self, job_id: str) -> Iterator[Publication]:
        """Yield the job's publications, newest first."""
        return map(Publication.model_validate, self._pages(f"/v1/jobs/{job_id}/publications", {}))

    def publishing(self, publication_id: str) -> Iterator[Publication]:
        """Yield the publication now and after each change, until it is terminal."""
        etag = ""
        while True:
            headers = {"If-None-Match": etag} if etag else None
            response = self._transport.request("GET", f"/v1/publications/{publication_id}", headers=headers)
            if response.status_code != httpx.codes.NOT_MODIFIED:
                etag, publication = response.headers.get("ETag", ""), Publication.model_validate(_decoded(response))
                yield publication
                if publication.is_terminal:
                    return
            self._transport.sleep(min(retry_after_seconds(response) or 1.0, _LONGEST_POLL_SECONDS))

    def retry_publication(self, publication_id: str) -> Publication:
        """Queue a failed publication again."""
        return Publication.model_validate(self._json("POST", f"/v1/publications/{publication_id}/retry"))

    @property
    def webhooks(self) -> Webhooks:
        """The webhooks of the service: URLs to which it sends events."""
        return Webhooks(json=self._json, pages=self._pages, send=self._transport.request)

    def ready(self) -> bool:
        """Ask the service once whether it is ready."""
        try:
            with self._transport.stream("/readyz", timeout_seconds=2.0) as response:
                return response.is_success
        except httpx.TransportError:
            return False

    def _json(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        return _decoded(self._transport.request(method, path, **arguments))

    def _pages(self, path: str, params: Mapping[str, str | int]) -> Iterator[dict[str, Any]]:
        cursor: str | None = None
        while True:
            query = {**params, "limit": _PAGE, **({"after": cursor} if cursor else {})}
            page = self._json("GET", path, params=query)
            yield from page["data"]
            cursor = page.get("next_cursor")
            if not page.get("has_more") or cursor is None:
                return

    def _stream(self, job_id: str, after: int, attempt: int) -> Iterator[tuple[Event, float | None]]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if after:
            # The standard header of server-sent events for resuming after this event.
            headers["Last-Event-ID"] = str(after)
        path = f"/v1/jobs/{job_id}/events"
        with self._transport.stream(path, headers=headers, timeout_seconds=_STREAM_TIMEOUT_SECONDS) as response:
            if response.is_error:
                if repeat_after_seconds(response, attempt) is None:
                    raise error_from_response(response)
                # Handled by events() like a broken connection: the stream is asked for again.
                raise httpx.ReadError(f"answered {response.status_code}", request=response.request)
            for sent in parse_events(response.iter_lines()):
                event = _event_of(sent)
                # Each event once, also if the server repeats some after a reconnection.
                if event is not None and event.id > after:
                    yield event, sent.retry


def _body_of(request: JobRequest | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(request, JobRequest):
        # Only the fields that were set: defaults are the service's, also those of another release.
        return request.model_dump(mode="json", exclude_unset=True)
    return dict(request)


def _decoded(response: httpx.Response) -> dict[str, Any]:
    try:
        decoded = response.json()
    except ValueError:
        decoded = None
    if not isinstance(decoded, dict):
        raise QuantryError(
            "bad_response",
            f"{response.request.url} did not answer with a JSON object.",
            hint="Check that the URL is the Quantry service's, without a path.",
        )
    return decoded


def _event_of(sent: ServerSentEvent) -> Event | None:
    """Return the event, or None for one without a number, which does not belong to the job's log."""
    if sent.id is None or not sent.id.isdecimal():
        return None
    return Event(id=int(sent.id), type=sent.event, data=json.loads(sent.data))


def _stream_lost(job_id: str, error: Exception) -> QuantryError:
    return QuantryError(
        "connection_lost",
        f"The event stream of {job_id} broke and can not be resumed ({error or type(error).__name__}).",
        hint=f"The job goes on. Look at it again with 'quantry watch {job_id}'.",
    )


def _ignore(artifact: Artifact, have: int) -> None:
    """Do nothing: the progress is not wanted."""
    del artifact, have
