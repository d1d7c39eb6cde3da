"""``quantry serve``: the embedded servers, the API and a worker as child processes, until Ctrl-C.

The listening socket is opened here and passed to the API. So a port that is in use is found before anything starts. And
while a crashed API restarts, connections wait in the queue of the socket and are not refused.
"""

import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Final, Self, TextIO

from quantry.client import Quantry
from quantry.environment import url_of
from quantry.errors import QuantryError
from quantry.service.config import ServeConfig
from quantry.service.processes import Kept, Process, ProcessSpec

DEMO_MODEL: Final = "smollm2-135m"

_EMBEDDED_SECONDS: Final = 120.0
_READY_SECONDS: Final = 120.0
_DEMO_MODEL_SECONDS: Final = 300.0
_STEP_SECONDS: Final = 0.25

Say = Callable[[str], None]


class Service:
    """All processes of one running service; a context manager, which stops them in reverse order."""

    def __init__(self, config: ServeConfig, say: Say, *, demo_model: bool = True) -> None:
        self.config = config
        self.url = ""
        self._say = say
        self._demo_model = demo_model
        self._stopping = False
        self._socket: socket.socket | None = None
        self._lock: TextIO | None = None
        self._embedded: Process | None = None
        self._kept: list[Kept] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stop(self) -> None:
        """Ask the service to stop, from a signal handler; methods that wait return soon."""
        self._stopping = True

    def start(self) -> bool:
        """Start all processes; return True when the service is ready, False if :meth:`stop` was called first.

        Raises:
            QuantryError: ``start_failed``, if the port or the directory is in use, or a process does not start.
            OSError: the directories can not be written.
        """
        self.config.logs_dir.mkdir(parents=True, exist_ok=True)
        self._lock = _lock_directory(self.config)
        self._socket = _bind(self.config)
        self.url = url_of(self.config.host, self._socket.getsockname()[1])
        # Started first, so that the model is made while the embedded servers start.
        preparation = self._prepare_demo_model()
        try:
            self._start_embedded()
            if preparation is not None:
                self._await_demo_model(preparation)
        finally:
            if preparation is not None:
                preparation.stop()
        self._await_ready()
        if self._stopping:
            return False
        # Only now: other programs take this file as the sign that the service is ready.
        self.config.state_file.write_text(json.dumps({"url": self.url, "pid": os.getpid()}), encoding="utf-8")
        return True

    def run(self) -> None:
        """Restart processes that end, until :meth:`stop` is called.

        Raises:
            QuantryError: ``start_failed``, if a process has ended too often in a row.
        """
        while not self._stopping:
            self._check()
            time.sleep(_STEP_SECONDS)

    def close(self) -> None:
        """Stop the worker, the API and the embedded servers, in this order; wait for each."""
        with ExitStack() as stack:  # runs every step, also when one of them raises
            if self._lock is not None:
                stack.callback(self._lock.close)
                stack.callback(self.config.state_file.unlink, missing_ok=True)
            if self._socket is not None:
                stack.callback(self._socket.close)
            if self._embedded is not None:
                stack.callback(self._embedded.stop)
            for kept in self._kept:
                stack.callback(kept.stop)
        self._kept, self._embedded, self._socket, self._lock = [], None, None, None

    def _start_embedded(self) -> None:
        environment = self._environment()
        embedded = Process(_embedded_spec(environment), self.config.logs_dir)
        self._embedded = embedded
        line = embedded.announcement(timeout_seconds=_EMBEDDED_SECONDS, stopping=lambda: self._stopping)
        if line is None:
            return
        try:
            urls = json.loads(line)
            environment["QUANTRY_DATABASE_URL"], environment["QUANTRY_BROKER_URL"] = (
                urls["database_url"],
                urls["broker_url"],
            )
        except (ValueError, KeyError, TypeError):
            raise embedded.failure("announced something else than its URLs") from None
        self._service_environment = environment

    def _start_service(self) -> None:
        assert self._socket is not None, "bound in start()"  # noqa: S101 - narrows the type
        for spec in (
            _api_spec(self._service_environment, self._socket.fileno()),
            _worker_spec(self._service_environment),
        ):
            self._kept.append(Kept(spec, self.config.logs_dir, self._say))

    def _await_ready(self) -> None:
        if self._stopping:
            return
        self._start_service()
        deadline = time.monotonic() + _READY_SECONDS
        # No repetitions of its own: this loop asks again, and looks at the processes in between.
        with Quantry(self.url, retries=0) as client:
            while not self._stopping and not client.ready():
                self._check()
                if time.monotonic() > deadline:
                    raise self._kept[0].process.failure(f"was not ready within {_READY_SECONDS:g} s")
                time.sleep(_STEP_SECONDS)

    def _check(self) -> None:
        if self._embedded is not None and self._embedded.exit_code is not None:
            self._restart_all()
        for kept in self._kept:
            kept.check()

    def _restart_all(self) -> None:
        """Restart all processes after the embedded servers ended, because their URLs may have changed."""
        assert self._embedded is not None, "only called when it has ended"  # noqa: S101 - narrows the type
        self._say(f"The embedded servers ended; starting them again (log: {self._embedded.log}).")
        while self._kept:
            self._kept.pop().stop()
        self._embedded.stop()
        self._start_embedded()
        if not self._stopping:
            self._start_service()

    def _prepare_demo_model(self) -> Process | None:
        """Start to make the demo's model if it is missing, which takes about a minute."""
        if not self._demo_model or (self.config.models_dir / DEMO_MODEL / "config.json").exists():
            return None
        self._say(f"Preparing the demo's model, once, as local:{DEMO_MODEL} …")
        return Process(demo_model_spec(self.config, self._environment()), self.config.logs_dir)

    def _await_demo_model(self, preparation: Process) -> None:
        deadline = time.monotonic() + _DEMO_MODEL_SECONDS
        while not self._stopping and preparation.exit_code is None and time.monotonic() < deadline:
            time.sleep(_STEP_SECONDS)
        if self._stopping or preparation.exit_code == 0:
            return
        reason = (preparation.tail() or ["it took too long"])[-1]
        # The demo's model is not needed for other jobs, so its failure does not stop the service.
        self._say(f"warning: local:{DEMO_MODEL} is not available: {reason} The service starts without it.")

    def _environment(self) -> dict[str, str]:
        port = self._socket.getsockname()[1] if self._socket is not None else self.config.port
        return {
            **os.environ,
            "QUANTRY_HOST": self.config.host,
            "QUANTRY_PORT": str(port),
            "QUANTRY_DATA_DIR": str(self.config.data_dir),
            "QUANTRY_MODELS_DIR": str(self.config.models_dir),
            "PYTHONUNBUFFERED": "1",
        }


def serve(config: ServeConfig, say: Say, *, demo_model: bool = True) -> None:
    """Run the service until SIGINT, SIGTERM or SIGHUP.

    Raises:
        QuantryError: ``start_failed``, with the reason and the path of the log.
    """
    with Service(config, say, demo_model=demo_model) as service:

        def on_signal(number: int, frame: FrameType | None) -> None:
            del number, frame
            service.stop()

        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, on_signal)
        if service.start():
            say(f"Quantry is ready at {service.url} (interactive documentation: {service.url}/docs). Ctrl-C stops it.")
        service.run()
        say("Stopping …")
    say("Stopped.")


def demo_model_spec(config: ServeConfig, environment: Mapping[str, str]) -> ProcessSpec:
    """Return the process that makes ``local:smollm2-135m``."""
    return ProcessSpec(
        name="demo-model",
        arguments=("-m", "worker.prepare_demo_model", f"--models-dir={config.models_dir}"),
        environment=environment,
    )


def _embedded_spec(environment: Mapping[str, str]) -> ProcessSpec:
    # SIGTERM, not SIGKILL, when this process dies: it has servers of its own to stop.
    return ProcessSpec(
        name="embedded",
        arguments=("-m", "jobs.embedded"),
        environment=environment,
        death_signal=signal.SIGTERM,
        announces=True,
    )


def _api_spec(environment: Mapping[str, str], listening_fd: int) -> ProcessSpec:
    command = ("-m", "api", f"--fd={listening_fd}")
    return ProcessSpec(name="api", arguments=command, environment=environment, pass_fds=(listening_fd,))


def _worker_spec(environment: Mapping[str, str]) -> ProcessSpec:
    # SIGQUIT: the worker hands its job back at once. On SIGTERM it would wait QUANTRY_DRAIN_SECONDS for the job.
    return ProcessSpec(
        name="worker",
        arguments=("-m", "worker", "--loglevel=INFO"),
        environment=environment,
        stop_signal=signal.SIGQUIT,
        grace_seconds=30.0,
    )


def _bind(config: ServeConfig) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise QuantryError(
            "start_failed", f"{config.host} is not an address of this machine ({error}).", hint="Change QUANTRY_HOST."
        ) from error
    # A restart must not wait for the old connections of the same port to time out.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise QuantryError(
            "start_failed",
            f"Can not listen on {config.host} port {config.port}: {error.strerror}.",
            hint="Stop what uses the port, or choose another: QUANTRY_PORT=8010 (0: any free one).",
        ) from error
    return listener


def _lock_directory(config: ServeConfig) -> TextIO:
    """Lock the data directory, because two services must not write it. The system releases the lock at exit."""
    file = (config.data_dir / "serve.lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise QuantryError(
            "start_failed",
            f"Another 'quantry serve' uses {config.data_dir}.",
            hint="Stop it, or choose another directory: QUANTRY_DATA_DIR=… quantry serve.",
        ) from None
    return file
