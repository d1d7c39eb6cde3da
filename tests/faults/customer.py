"""Clients that submit jobs over HTTP, with an Idempotency-Key, and repeat a request until the answer is a 202."""

import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx

from tests.faults.catalog import KINDS, request
from tests.faults.witness import Journal

_TIMEOUT: Final = 5.0
_AGAIN_SECONDS: Final = 0.25
_PATIENCE_SECONDS: Final = 90.0


class Customer:
    """One client of the API; the answers go into the journal."""

    def __init__(self, url: str, journal: Journal, *, name: str = "customer") -> None:
        self._client = httpx.Client(base_url=url, timeout=_TIMEOUT, trust_env=False)
        self._journal = journal
        self._name = name
        self._count = 0

    def submit(self, kind: str) -> str | None:
        """Submit a job and return its id; None if the API did not answer with a 202 for a minute and a half."""
        self._count += 1
        key = f"{self._name}-{self._count}"
        began = time.time()
        while time.time() - began < _PATIENCE_SECONDS:
            answer = self._ask("POST", "/v1/jobs", json=request(kind, key), headers={"Idempotency-Key": key})
            if answer is not None and answer.status_code == httpx.codes.ACCEPTED:
                job_id: str = answer.json()["id"]
                self._journal.write("accepted", job=job_id, kind=kind, key=key, began=began)
                return job_id
            self._note(answer, key)
            time.sleep(_AGAIN_SECONDS)
        return None

    def look(self, job_id: str) -> str | None:
        """Note and return the job's status in the API; None if it does not answer."""
        answer = self._ask("GET", f"/v1/jobs/{job_id}")
        if answer is None or answer.status_code != httpx.codes.OK:
            self._note(answer, job_id)
            return None
        job = answer.json()
        status: str = job["status"]
        self._journal.write("seen", job=job_id, by="api", status=status, attempt=job["attempt"])
        return status

    def is_ready(self) -> bool:
        """Return whether the service reports that it is ready."""
        answer = self._ask("GET", "/readyz")
        return answer is not None and answer.status_code == httpx.codes.OK

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response | None:
        try:
            return self._client.request(method, path, **options)
        except httpx.HTTPError:
            return None

    def _note(self, answer: httpx.Response | None, about: str) -> None:
        # 409: the first try of this key is still in flight, for instance in an API that was killed just now.
        if answer is not None and answer.status_code != httpx.codes.CONFLICT:
            self._journal.write("refused", status=answer.status_code, about=about, detail=answer.text[:200])


class Crowd:
    """A thread that keeps some jobs queued during the block, and reads one now and then."""

    def __init__(
        self, customer: Customer, rng: random.Random, states: Callable[[], Mapping[str, str]], *, waiting: int
    ) -> None:
        self._customer = customer
        self._rng = rng
        self._states = states
        self._waiting = waiting
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._submit, name="crowd", daemon=True)
        self._known: list[str] = []

    def __enter__(self) -> "Crowd":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _submit(self) -> None:
        kinds = [kind.name for kind in KINDS.values()]
        weights = [kind.weight for kind in KINDS.values()]
        while not self._stopping.wait(self._rng.uniform(0.05, 0.4)):
            if self._known:
                self._customer.look(self._rng.choice(self._known[-50:]))
            if sum(status == "queued" for status in self._states().values()) < self._waiting:
                [kind] = self._rng.choices(kinds, weights)
                job_id = self._customer.submit(kind)
                if job_id is not None:
                    self._known.append(job_id)
