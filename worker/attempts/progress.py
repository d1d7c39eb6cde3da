"""The progress of a job and the estimate of the time it still needs.

The overall fraction is the sum over the stages that a policy needs, each with its weight. The time left is estimated
from observed unit times. For the running stage these are used directly. For later stages the estimate is their weight
times the seconds that one unit of weight has cost so far.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

_UNIT_TIMES_KEPT: Final = 64
_REUSED_BELOW: Final = 0.02  # a unit that took less than this share of the slowest was reused, not computed
_Z90: Final = 1.2816  # the standard normal's 90th percentile
_UNSEEN_STAGE_SPREAD: Final = 1.5  # p90 over p50 of a stage that has not begun: its weight is a rule of thumb


@dataclass(frozen=True)
class ProgressReading:
    """The progress at one moment. ``fraction`` in [0, 1] never falls; times are in seconds, None until observed."""

    fraction: float
    stage: str | None
    unit: str | None
    done: int | None
    total: int | None
    eta_p50: float | None
    eta_p90: float | None


@dataclass
class _Running:
    """The running stage, with the times of its latest units."""

    name: str
    unit: str
    total: int
    started: float
    advanced: float
    done: int = 0
    unit_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_UNIT_TIMES_KEPT))

    @property
    def fraction(self) -> float:
        return min(self.done / self.total, 1.0) if self.total > 0 else 0.0

    def remaining(self, now: float) -> tuple[float, float] | None:
        """Return the seconds left of this stage as (p50, p90), or None before the first unit is done."""
        if not self.unit_seconds:
            return None
        units = max(self.total - self.done, 0)
        # Reused units take almost no time and would make the estimate of computed ones too short.
        computed = [seconds for seconds in self.unit_seconds if seconds >= _REUSED_BELOW * max(self.unit_seconds)]
        typical = statistics.median(computed)
        deviation = statistics.pstdev(computed)
        # Time already spent on the current unit counts, but at most one unit: the estimate must not reach 0 early.
        waited = min(now - self.advanced, typical) if units else 0.0
        p50 = max(units * typical - waited, 0.0)
        # The sum of n independent unit times has √n times the deviation of one.
        return p50, p50 + _Z90 * deviation * math.sqrt(units)


class ProgressTracker:
    """Computes the progress of one job from its stages. Not thread-safe; ``clock`` gives monotonic seconds."""

    def __init__(self, weights: Mapping[str, float], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._weights = dict(weights)
        self._clock = clock
        self._finished: set[str] = set()
        self._running: _Running | None = None
        self._cost_seconds = 0.0
        self._cost_weight = 0.0
        self._highest = 0.0

    def start(self, name: str, unit: str, total: int) -> None:
        """Record that a stage begins; every stage before it is over."""
        now = self._clock()
        self._finish_before(name)
        self._weights.setdefault(name, 1.0)  # a stage that was not expected goes to the end, with a weight of 1
        self._running = _Running(name=name, unit=unit, total=total, started=now, advanced=now)

    def advance(self, name: str, done: int, total: int) -> None:
        """Record that ``done`` of ``total`` units are complete."""
        running = self._running
        if running is None or running.name != name:
            return
        now = self._clock()
        units = done - running.done
        if units > 0:
            # Several units in one report: each is taken to have needed the same time.
            running.unit_seconds.extend([(now - running.advanced) / units] * min(units, _UNIT_TIMES_KEPT))
            running.advanced = now
        running.done, running.total = max(done, running.done), total

    def finish(self, name: str, *, reused: bool) -> None:
        """Record that a stage is over. A reused stage is left out of the cost, because nothing was computed."""
        running, now = self._running, self._clock()
        if running is not None and running.name == name:
            if not reused:
                self._cost_seconds += now - running.started
                self._cost_weight += self._weights[name]
            self._running = None
        self._finished.add(name)
        self._finish_before(name)

    def snapshot(self) -> ProgressReading:
        """Return the progress at this moment."""
        running = self._running
        p50, p90 = self._eta()
        return ProgressReading(
            fraction=self._fraction(),
            stage=running.name if running else None,
            unit=running.unit if running else None,
            done=running.done if running else None,
            total=running.total if running else None,
            eta_p50=p50,
            eta_p90=p90,
        )

    def _finish_before(self, name: str) -> None:
        order = list(self._weights)
        if name in order:
            self._finished.update(order[: order.index(name)])

    def _fraction(self) -> float:
        whole = sum(self._weights.values())
        done = sum(weight for name, weight in self._weights.items() if name in self._finished)
        if self._running is not None and self._running.name not in self._finished:
            done += self._weights[self._running.name] * self._running.fraction
        # A total that grows or an unexpected stage could lower the sum; the reported fraction never falls.
        self._highest = max(self._highest, min(done / whole, 1.0) if whole > 0 else 0.0)
        return self._highest

    def _eta(self) -> tuple[float | None, float | None]:
        now, running = self._clock(), self._running
        if running is None:
            rate = self._cost_seconds / self._cost_weight if self._cost_weight > 0 else None
            p50 = p90 = 0.0
        else:
            observed = running.remaining(now)
            rate = self._seconds_per_weight(running, observed, now)
            p50, p90 = observed or self._guess(running, rate or 0.0, now)
        if rate is None:
            return None, None
        ahead = rate * sum(weight for name, weight in self._weights.items() if name not in self._begun())
        return p50 + ahead, p90 + ahead * _UNSEEN_STAGE_SPREAD

    def _begun(self) -> set[str]:
        return self._finished | ({self._running.name} if self._running is not None else set())

    def _seconds_per_weight(self, running: _Running, observed: tuple[float, float] | None, now: float) -> float | None:
        """Return the seconds per unit of weight so far; the running stage counts once its end can be estimated."""
        seconds, weight = self._cost_seconds, self._cost_weight
        if observed is not None:
            # The running stage counts as a whole: the time so far and the time it is expected to take yet.
            seconds += now - running.started + observed[0]
            weight += self._weights[running.name]
        return seconds / weight if weight > 0 else None

    def _guess(self, running: _Running, rate: float, now: float) -> tuple[float, float]:
        """Estimate (p50, p90) of a stage that has finished no unit yet, from its weight."""
        left = max(self._weights[running.name] * rate - (now - running.started), 0.0)
        return left, left * _UNSEEN_STAGE_SPREAD
