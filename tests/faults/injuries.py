"""The faults that are done to the service, by name. Each notes itself in the journal, with the jobs that it hits.

A fault that lasts (a frozen process, a silent wire) plans its own end, which a timer carries out, because the thread
that makes faults may itself wait for the frozen database.
"""

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import psutil

from tests.faults import failpoints
from tests.faults.fleet import Fleet, Kept
from tests.faults.proxy import Mode, Proxy
from tests.faults.servers import Server
from tests.faults.witness import Journal, Window

Part = Literal["main", "child", "sweeper", "runner", "tree"]


class _Plan:
    """An action to be done once, by a timer or by a thread that can not wait for the timer."""

    def __init__(self, deed: Callable[[], None]) -> None:
        self._deed = deed
        self._lock = threading.Lock()
        self._done = False

    def carry_out(self) -> None:
        """Do the action, unless it has been done."""
        with self._lock:
            if not self._done:
                self._done = True
                self._deed()


class Injuries:
    """Faults on one fleet, chosen by ``rng``. Used from the thread that made the fleet."""

    def __init__(self, fleet: Fleet, journal: Journal, rng: random.Random, *, frozen_seconds: float) -> None:
        self.fleet = fleet
        self.rng = rng
        self._journal = journal
        self._window = Window(fleet.observer_url)
        self._frozen_seconds = frozen_seconds
        self._planned: list[_Plan] = []
        self._busy: set[str] = set()
        self._fired = 0
        self._count = 0

    def random(self) -> str:
        """Do one fault, chosen by weight, and return its name."""
        names = list(INJURIES)
        [name] = self.rng.choices(names, [INJURIES[name][0] for name in names])
        INJURIES[name][1](self)
        return name

    def tend(self) -> None:
        """Note the fail points that have fired."""
        found = list(failpoints.fired(self.fleet.data_dir))
        for shot in found[self._fired :]:
            jobs = [
                job for worker in self.fleet.workers if _had(worker, shot) for job in self._window.held_by(worker.pid)
            ]
            self.note(f"fail_point {shot.name}", jobs, at=shot.at)
        self._fired = len(found)

    def heal(self) -> None:
        """End all lasting faults, and disarm the fail points."""
        for plan in self._planned:
            plan.carry_out()
        self._planned.clear()
        failpoints.disarm(self.fleet.data_dir)
        self.tend()

    def close(self) -> None:
        """End all faults, and stop observing."""
        self.heal()
        self._window.close()

    def note(self, name: str, jobs: Sequence[str] = (), *, at: float | None = None) -> int:
        """Write a fault into the journal and return its number."""
        self._count += 1
        self._journal.write("fault", id=self._count, name=name, jobs=list(jobs), at=at)
        return self._count

    def worker(self) -> Kept:
        """Return a worker without a fault, or any worker if there is none."""
        free = [kept for kept in self.fleet.workers if kept.name not in self._busy]
        return self.rng.choice(free or self.fleet.workers)

    def _working(self) -> Kept:
        """Return a worker that holds a job, or any worker if none does."""
        found = [kept for kept in self.fleet.workers if kept.name not in self._busy and self.held_by(kept)]
        return self.rng.choice(found) if found else self.worker()

    def held_by(self, worker: Kept) -> list[str]:
        """Return the jobs that a worker holds now."""
        return self._window.held_by(worker.pid)

    def kill(self, part: Part, worker: Kept | None = None) -> list[str]:
        """Kill one part of a worker, or all of it, by SIGKILL; return the jobs that it held."""
        worker = worker or self._working()
        jobs = self.held_by(worker)
        targets = self._part(worker, part)
        self.note(f"kill_{part}", [] if part == "sweeper" else jobs)
        send(targets, signal.SIGKILL)
        return jobs

    def kill_api(self) -> None:
        """Kill the API by SIGKILL."""
        self.note("kill_api")
        send(self.fleet.api.family(), signal.SIGKILL)

    def terminate(self, kept: Kept, signum: signal.Signals) -> None:
        """Send SIGTERM to a process."""
        self.note(f"{signum.name.lower()}_{kept.name.rstrip('0123456789')}")
        if kept.process is not None and kept.pid is not None:
            kept.process.send_signal(signum)

    def freeze(self, part: Part) -> None:
        """Stop a worker for longer than its lease, never two at once, because one has to be left to recover."""
        if self._busy:
            self.kill("runner")
            return
        worker = self._working()
        jobs = self.held_by(worker)
        targets = self._part(worker, part)
        self.note(f"freeze_{part}", jobs)
        self._busy.add(worker.name)
        send(targets, signal.SIGSTOP)

        def thaw() -> None:
            self._busy.discard(worker.name)
            send(reversed(targets), signal.SIGCONT)

        self._plan(self._frozen_seconds, thaw)

    def freeze_briefly(self, name: str, processes: Sequence[psutil.Process]) -> None:
        """Stop a process for a few seconds, as on a machine that swaps."""
        number = self.note(name)
        send(processes, signal.SIGSTOP)

        def thaw() -> None:
            send(reversed(processes), signal.SIGCONT)
            self._journal.write("healed", fault=number)

        self._plan(self.rng.uniform(2.0, 8.0), thaw)

    def kill_server(self, name: str, server: Server, signum: signal.Signals) -> None:
        """End a server by a signal, and start it again at once on its data."""
        self.note(name)
        if server.pid is not None:
            process = psutil.Process(server.pid)
            process.send_signal(signum)
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(20)
        assert server.pid is None, f"{name}: it does not end"
        server.start()

    def wire(self, name: str, proxy: Proxy, mode: Mode) -> None:
        """Make a wire slow, cut or silent for a few seconds."""
        number = self.note(f"{name}_{mode.value}")
        proxy.set(mode, delay_seconds=self.rng.uniform(0.02, 0.3))

        def mend() -> None:
            proxy.set(Mode.OPEN)
            self._journal.write("healed", fault=number)

        self._plan(self.rng.uniform(1.0, 8.0), mend)

    def fail_point(self) -> None:
        """Arm one of the edges; the point is noted when a process reaches it."""
        role = self.rng.choice(list(failpoints.EDGES))
        edge = self.rng.choice(failpoints.EDGES[role])
        moment: failpoints.Moment = self.rng.choice(("before", "after"))
        failpoints.arm(self.fleet.data_dir, failpoints.FailPoint(role, edge, moment, self.rng.randint(1, 12)))

    def _plan(self, seconds: float, end: Callable[[], None]) -> None:
        plan = _Plan(end)
        self._planned.append(plan)
        timer = threading.Timer(seconds, plan.carry_out)
        timer.daemon = True
        timer.start()

    def _part(self, worker: Kept, part: Part) -> list[psutil.Process]:
        if part == "tree":
            return worker.family()
        if part == "main":
            return worker.family()[:1]
        find = {"child": self.fleet.child_of, "sweeper": self.fleet.sweeper_of, "runner": self.fleet.runner_of}[part]
        found = find(worker)
        return [found] if found is not None else []


def send(processes: Iterable[psutil.Process], signum: signal.Signals) -> None:
    """Send a signal to each process; ignore those that are gone already."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signum)


def _had(worker: Kept, shot: failpoints.Fired) -> bool:
    """Return whether the dead process was this worker's child or runner; a sweeper holds no job."""
    if shot.name.startswith("sweeper"):
        return False
    return bool({shot.pid, shot.parent} & {process.pid for process in worker.family()})


def _postgres(fleet: Fleet) -> list[psutil.Process]:
    pid = fleet.servers.database.pid
    if pid is None:
        return []
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


Injury = Callable[[Injuries], object]
INJURIES: Final[dict[str, tuple[int, Injury]]] = {
    "kill_api": (4, lambda on: on.kill_api()),
    "kill_main": (4, lambda on: on.kill("main")),
    "kill_child": (4, lambda on: on.kill("child")),
    "kill_runner": (5, lambda on: on.kill("runner")),
    "kill_tree": (4, lambda on: on.kill("tree")),
    "kill_sweeper": (2, lambda on: on.kill("sweeper")),
    "kill_broker": (4, lambda on: on.kill_server("kill_broker", on.fleet.servers.broker, signal.SIGKILL)),
    "kill_database": (2, lambda on: on.kill_server("kill_database", on.fleet.servers.database, signal.SIGKILL)),
    "restart_broker": (1, lambda on: on.kill_server("restart_broker", on.fleet.servers.broker, signal.SIGTERM)),
    "restart_database": (1, lambda on: on.kill_server("restart_database", on.fleet.servers.database, signal.SIGINT)),
    "stop_database": (1, lambda on: on.kill_server("stop_database", on.fleet.servers.database, signal.SIGQUIT)),
    "freeze_child": (1, lambda on: on.freeze("child")),
    "freeze_tree": (1, lambda on: on.freeze("tree")),
    "freeze_api": (1, lambda on: on.freeze_briefly("freeze_api", on.fleet.api.family())),
    "freeze_database": (1, lambda on: on.freeze_briefly("freeze_database", _postgres(on.fleet))),
    "sigterm_worker": (2, lambda on: on.terminate(on.worker(), signal.SIGTERM)),
    "sigquit_worker": (2, lambda on: on.terminate(on.worker(), signal.SIGQUIT)),
    "sigterm_api": (1, lambda on: on.terminate(on.fleet.api, signal.SIGTERM)),
    "database_delay": (1, lambda on: on.wire("database", on.fleet.database_proxy, Mode.DELAY)),
    "database_reset": (1, lambda on: on.wire("database", on.fleet.database_proxy, Mode.RESET)),
    "database_blackhole": (1, lambda on: on.wire("database", on.fleet.database_proxy, Mode.BLACKHOLE)),
    "broker_delay": (1, lambda on: on.wire("broker", on.fleet.broker_proxy, Mode.DELAY)),
    "broker_reset": (1, lambda on: on.wire("broker", on.fleet.broker_proxy, Mode.RESET)),
    "broker_blackhole": (1, lambda on: on.wire("broker", on.fleet.broker_proxy, Mode.BLACKHOLE)),
    "fail_point": (8, lambda on: on.fail_point()),
}
"""Every injury with its weight."""
