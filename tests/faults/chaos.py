"""``python -m tests.faults.chaos --minutes 30 --seed N``: the whole service under seeded faults, and a verdict.

The live line and the table go to standard output. The verdict goes to ``--output`` as JSON, with the journal beside it.
The exit status is 1 if a job was lost, published twice, stuck or ended wrongly. One seed gives one sequence of faults;
the exact moment of each fault depends on the machine.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

from jobs.settings import Settings
from tests.faults.checker import TERMINAL, Recovery, Verdict, check, quantile
from tests.faults.customer import Crowd, Customer
from tests.faults.fleet import Fleet, running_fleet
from tests.faults.injuries import Injuries
from tests.faults.servers import FLAVORS, Flavor
from tests.faults.witness import Journal, Watcher, Window, final_state

PAUSE: Final = (2.0, 9.0)
SETTINGS: Final = {"max_attempts": 10, "retry_delay_seconds": 0.5}
"""More attempts than the default's three: many faults hit one long job, and its crash_loop would be no mistake. Lease,
heartbeat and sweep are those of an operator who sets nothing.
"""

_READY_SECONDS: Final = 120.0
_SETTLE_SECONDS: Final = 180.0
_STEP_SECONDS: Final = 0.1
PROMISED_SECONDS: Final = 60.0
"""The longest that a single fault may be felt."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run. ``pause``: seconds between two faults, drawn evenly; ``real``: jobs of the real engine, at the start."""

    flavor: Flavor
    seed: int
    seconds: float
    journal: Path
    pause: tuple[float, ...] = PAUSE
    real: int = 0
    waiting: int = 8
    live: bool = False


def run_chaos(plan: Plan) -> Verdict:
    """Run the service under faults. Raises: RuntimeError, if the service does not start."""
    journal = Journal(plan.journal)
    journal.write("started", seed=plan.seed, seconds=plan.seconds, servers=plan.flavor, pause=plan.pause)
    logs = plan.journal.parent / "logs"
    with (
        running_fleet(plan.flavor, settings=SETTINGS, logs=logs) as fleet,
        Watcher(fleet.observer_url, journal) as watcher,
    ):
        customer = Customer(fleet.url, journal)
        _await_ready(fleet, customer)
        if plan.real:
            _submit_real(fleet, customer, plan.real)
        rng = random.Random(plan.seed)  # noqa: S311 — for faults, not for secrets
        crowd_rng = random.Random(rng.random())  # noqa: S311 — as above
        injuries = Injuries(fleet, journal, rng, frozen_seconds=fleet.lease_seconds * 1.3)
        with Crowd(customer, crowd_rng, lambda: watcher.states, waiting=plan.waiting):
            _injure(plan, fleet, injuries, watcher, journal)
            injuries.close()
        _settle(fleet, watcher, customer, journal)
        journal.write("ended")
        final = final_state(fleet.observer_url, Settings(data_dir=fleet.data_dir))
        customer.close()
    journal.close()
    plan.journal.with_suffix(".final.json").write_text(json.dumps(asdict(final)))
    return check(journal.entries, final)


def _await_ready(fleet: Fleet, customer: Customer) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not customer.is_ready():
        fleet.tend()
        if time.monotonic() > deadline:
            raise RuntimeError(f"the service did not become ready; see {fleet.api.log}: {fleet.api.log.read_text()}")
        time.sleep(_STEP_SECONDS)


def _submit_real(fleet: Fleet, customer: Customer, count: int) -> None:
    from tests.tiny_models import write_tiny_model  # noqa: PLC0415 — loads torch, which most runs do without

    write_tiny_model(fleet.data_dir / "models" / "tiny", layers=3)
    for _ in range(count):
        customer.submit("tiny")


def _injure(plan: Plan, fleet: Fleet, injuries: Injuries, watcher: Watcher, journal: Journal) -> None:
    began = time.monotonic()
    next_fault = began + plan.pause[0]
    next_line = began
    while (now := time.monotonic()) < began + plan.seconds:
        fleet.tend()
        injuries.tend()
        if now >= next_fault:
            injuries.random()
            next_fault = time.monotonic() + injuries.rng.uniform(*plan.pause)
        if plan.live and now >= next_line:
            _say_line(now - began, plan.seconds, watcher, journal)
            next_line = now + 1.0
        time.sleep(_STEP_SECONDS)


def _settle(fleet: Fleet, watcher: Watcher, customer: Customer, journal: Journal) -> None:
    """Wait without faults until every accepted job is over, or until no job has moved for minutes."""
    jobs = [entry["job"] for entry in journal.entries if entry["what"] == "accepted"]
    window, said, heard_at = Window(fleet.observer_url), -1, time.monotonic()
    while (
        any(watcher.states.get(job) not in TERMINAL for job in jobs) and time.monotonic() < heard_at + _SETTLE_SECONDS
    ):
        fleet.tend()
        [events] = window.rows("SELECT coalesce(sum(last_event_id), 0)::int AS count FROM jobs")
        if events["count"] != said:
            said, heard_at = events["count"], time.monotonic()
        time.sleep(_STEP_SECONDS)
    window.close()
    for job in jobs[-20:]:
        customer.look(job)


def _say_line(passed: float, seconds: float, watcher: Watcher, journal: Journal) -> None:
    states = Counter(watcher.states.values())
    counts = Counter(entry["what"] for entry in journal.entries)
    shown = ", ".join(f"{count} {status}" for status, count in sorted(states.items()))
    line = f"{passed:5.0f}/{seconds:.0f} s  {counts['accepted']} accepted: {shown}; {counts['fault']} faults"
    sys.stdout.write(f"\r{line:<110}" if sys.stdout.isatty() else f"{line}\n" if int(passed) % 30 == 0 else "")
    sys.stdout.flush()


def figures(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as JSON, with the quantiles of recovery in seconds, over all faults and for each kind."""
    by_fault: dict[str, list[float]] = {"all": [recovery.seconds for recovery in verdict.recoveries]}
    by_fault["all, alone"] = [recovery.seconds for recovery in verdict.recoveries if recovery.alone]
    for recovery in verdict.recoveries:
        by_fault.setdefault(recovery.fault.split()[0], []).append(recovery.seconds)
    recovery_seconds = {
        name: {
            "count": len(values),
            **{label: round(quantile(values, part) or 0.0, 1) for label, part in _QUANTILES.items()},
        }
        for name, values in by_fault.items()
    }
    return {"kept": verdict.kept, **asdict(verdict), "recoveries": recovery_seconds}


def late(verdict: Verdict) -> list[Recovery]:
    """Return the faults that met no other fault and had effects for longer than was promised."""
    return [recovery for recovery in verdict.recoveries if recovery.alone and recovery.seconds > PROMISED_SECONDS]


_QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "max": 1.0}


def table(verdict: Verdict) -> str:
    """Return the table that is printed at the end."""
    shown = figures(verdict)
    ended = ", ".join(f"{count} {status}" for status, count in sorted(verdict.ended.items()))
    lines = ["", f"{'jobs accepted':<20}{verdict.accepted} ({ended})"]
    lines.append(f"{'faults':<20}{sum(verdict.faults.values())}")
    lines += [f"  {name:<32}{count:>4}" for name, count in sorted(verdict.faults.items())]
    lines += [f"{name:<20}{len(shown[name])}" for name in ("lost", "doubled", "stuck", "wrong")]
    lines += [f"  {problem}" for name in ("lost", "doubled", "stuck", "wrong") for problem in shown[name][:10]]
    lines.append("recovery, seconds      count    p50    p95    max")
    lines += [
        f"  {name:<20}{row['count']:>6}{row['p50']:>7}{row['p95']:>7}{row['max']:>7}"
        for name, row in sorted(shown["recoveries"].items())
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="tests.faults.chaos", description="The service under seeded faults.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--servers", choices=FLAVORS, default="embedded")
    parser.add_argument("--real", type=int, default=2, help="jobs that go through the real engine")
    parser.add_argument("--pause", type=float, nargs=2, default=PAUSE, help="seconds between faults, least and most")
    parser.add_argument("--output", type=Path, default=None, help="where the verdict goes as JSON")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 31)
    output = options.output or Path(mkdtemp(prefix="quantry-chaos-")) / "verdict.json"
    sys.stdout.write(f"seed {seed}, {options.minutes:g} minutes on {options.servers} servers; logs beside {output}\n")
    output.parent.mkdir(parents=True, exist_ok=True)
    verdict = run_chaos(
        Plan(
            flavor=options.servers,
            seed=seed,
            seconds=options.minutes * 60,
            journal=output.with_suffix(".jsonl"),
            real=options.real,
            pause=tuple(options.pause),
            live=True,
        )
    )
    output.write_text(json.dumps({"seed": seed, "minutes": options.minutes, **figures(verdict)}, indent=2))
    sys.stdout.write(table(verdict) + "\n")
    return 0 if verdict.kept and not late(verdict) else 1


if __name__ == "__main__":
    sys.exit(main())
