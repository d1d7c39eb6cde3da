"""How far a job is, and when it will be done.

The overall fraction weighs the stages a policy needs; the time left comes from the unit times that were observed:
within the running stage directly, for the stages to come through the seconds that a unit of weight has cost so far.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

_UNIT_TIMES_KEPT: Final = 64
_TAKEN_OVER: Final = 0.02  # a unit this much quicker than the slowest was not computed but found done
_Z90: Final = 1.2816  # the standard normal's 90th percentile
_UNSEEN_STAGE_SPREAD: Final = 1.5  # p90 over p50 of a stage that has not begun: its weight is a rule of thumb


@dataclass(frozen=True)
class ProgressReading:
    """One reading. ``fraction`` in [0, 1] never falls; the times are seconds, None until something was observed."""

    fraction: float
    stage: str | None
    unit: str | None
    done: int | None
    total: int | None
    eta_p50: float | None
    eta_p90: float | None


@dataclass
class _Running:
    """The stage under way, with the times of its latest units."""

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
        """Seconds left of this stage as (p50, p90), or None before the first unit is done."""
        if not self.unit_seconds:
            return None
        units = max(self.total - self.done, 0)
        computed = [seconds for seconds in self.unit_seconds if seconds >= _TAKEN_OVER * max(self.unit_seconds)]
        typical = statistics.median(computed)
        deviation = statistics.pstdev(computed)
        waited = min(now - self.advanced, typical) if units else 0.0
        p50 = max(units * typical - waited, 0.0)
        return p50, p50 + _Z90 * deviation * math.sqrt(units)


class ProgressTracker:
    """Follows the stages of one job. Not thread-safe; ``clock`` is monotonic seconds."""

    def __init__(self, weights: Mapping[str, float], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._weights = dict(weights)
        self._clock = clock
        self._finished: set[str] = set()
        self._running: _Running | None = None
        self._cost_seconds = 0.0
        self._cost_weight = 0.0
        self._highest = 0.0

    def start(self, name: str, unit: str, total: int) -> None:
        """A stage begins; every stage that comes before it is over."""
        now = self._clock()
        self._finish_before(name)
        self._weights.setdefault(name, 1.0)  # not expected: nothing is known of what comes before it
        self._running = _Running(name=name, unit=unit, total=total, started=now, advanced=now)

    def advance(self, name: str, done: int, total: int) -> None:
        """``done`` of ``total`` units are complete."""
        running = self._running
        if running is None or running.name != name:
            return
        now = self._clock()
        units = done - running.done
        if units > 0:
            running.unit_seconds.extend([(now - running.advanced) / units] * min(units, _UNIT_TIMES_KEPT))
            running.advanced = now
        running.done, running.total = max(done, running.done), total

    def finish(self, name: str, *, reused: bool) -> None:
        """A stage is over. A reused one teaches nothing about cost."""
        running, now = self._running, self._clock()
        if running is not None and running.name == name:
            if not reused:
                self._cost_seconds += now - running.started
                self._cost_weight += self._weights[name]
            self._running = None
        self._finished.add(name)
        self._finish_before(name)

    def snapshot(self) -> ProgressReading:
        """The reading of this moment."""
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
        """What a unit of weight has cost so far, the running stage included once its own end can be told."""
        seconds, weight = self._cost_seconds, self._cost_weight
        if observed is not None:
            seconds += now - running.started + observed[0]
            weight += self._weights[running.name]
        return seconds / weight if weight > 0 else None

    def _guess(self, running: _Running, rate: float, now: float) -> tuple[float, float]:
        """The rest of a stage that has finished no unit yet, by its weight."""
        left = max(self._weights[running.name] * rate - (now - running.started), 0.0)
        return left, left * _UNSEEN_STAGE_SPREAD
