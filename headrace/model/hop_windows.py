"""The last 1, 10 and 60 seconds of a flow's hops, made of looks at its instances: pure, and exact in every count.

A look gives what each instance has counted since it started. What an instance gained since the last look at it belongs
to the tick that ends with this look; a window is the sum of its last ticks. So:

- The first look at an instance only says where it stands, unless the instance is younger than the watch.
- One that began anew (another incarnation, or counts that went back) counts whole.
- One that did not answer is made good by its next answer; its gain belongs to that tick.
- One that is gone leaves what it gained; it is forgotten after the longest window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from headrace.model.histogram import Exemplar
from headrace.model.histogram_part import HistogramPart, gained

SPANS_S = (1, 10, 60)
EXEMPLARS = 3
PRESENT_TICKS = 5

# step, phase, receiver, revision
PhaseKey = tuple[str, str, str, str]
# step, revision
StepKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Look:
    """What one instance said. `uptime_s` is for how long it has counted; `oldest_age_s` 0 while nothing is held."""

    instance: str
    step: str
    revision: str
    incarnation: int
    uptime_s: float
    phases: Mapping[PhaseKey, HistogramPart]
    counters: Mapping[str, int] = field(default_factory=dict)
    exemplars: Mapping[PhaseKey, Sequence[Exemplar]] = field(default_factory=dict)
    held: int = 0
    oldest_age_s: float = 0.0


@dataclass(slots=True)
class Gain:
    """What came between two moments. `counters` per step and revision."""

    duration_s: float = 0.0
    phases: dict[PhaseKey, HistogramPart] = field(default_factory=dict)
    counters: dict[StepKey, dict[str, int]] = field(default_factory=dict)
    exemplars: dict[PhaseKey, list[Exemplar]] = field(default_factory=dict)

    def note(self, look: Look, before: Look | None) -> None:
        """Adds what an instance gained since `before`; None: since it started."""
        for key, after in look.phases.items():
            self._add_phase(key, before.phases.get(key) if before is not None else None, after)
        counts = self.counters.setdefault((look.step, look.revision), {})
        for name, number in look.counters.items():
            earlier = before.counters.get(name, 0) if before is not None else 0
            counts[name] = counts.get(name, 0) + (number - earlier if number >= earlier else number)
        for key, marked in look.exemplars.items():
            known = before.exemplars.get(key, ()) if before is not None else ()
            fresh = [exemplar for exemplar in marked if exemplar not in known]
            if fresh:
                self.exemplars.setdefault(key, []).extend(fresh)

    def _add_phase(self, key: PhaseKey, before: HistogramPart | None, after: HistogramPart) -> None:
        part = gained(before, after) if before is not None else None
        if part is None:
            part = HistogramPart(dict(after.buckets), after.sum_ns, after.max_ns, after.skewed)
        if not part.buckets:
            return
        if key in self.phases:
            self.phases[key].add(part)
        else:
            self.phases[key] = part


@dataclass(slots=True)
class _Seen:
    look: Look
    tick: int


class HopWindows:
    """Give it all looks of a tick at once, about once a second; `now_s` is any clock that does not go back."""

    def __init__(self) -> None:
        self._ticks: deque[Gain] = deque(maxlen=max(SPANS_S))
        self._sums = {span: Gain() for span in SPANS_S}
        self._seen: dict[str, _Seen] = {}
        self._began_s: float | None = None
        self._last_s = 0.0
        self._number = 0

    @property
    def present(self) -> dict[str, Look]:
        """The newest look at each instance that answered in one of the last ticks: who is late once is still there."""
        return {name: seen.look for name, seen in self._seen.items() if self._number - seen.tick < PRESENT_TICKS}

    @property
    def ticks(self) -> int:
        """How many there were; the first one only says where everything stands."""
        return self._number

    def tick(self, now_s: float, looks: Iterable[Look]) -> None:
        """One second more. An instance that is not among the looks did not answer."""
        self._number += 1
        gain = Gain(now_s - self._last_s if self._began_s is not None else 0.0)
        for look in looks:
            seen = self._seen.get(look.instance)
            if seen is not None:
                gain.note(look, seen.look if seen.look.incarnation == look.incarnation else None)
            elif self._began_s is not None and look.uptime_s <= now_s - self._began_s:
                gain.note(look, None)
            self._seen[look.instance] = _Seen(look, self._number)
        if self._began_s is None:
            self._began_s = now_s
        else:
            self._push(gain)
        self._last_s = now_s
        for name in [name for name, seen in self._seen.items() if self._number - seen.tick > max(SPANS_S)]:
            del self._seen[name]

    def _push(self, gain: Gain) -> None:
        for span, total in self._sums.items():
            if len(self._ticks) >= span:
                _remove(total, self._ticks[-span])
            _add(total, gain)
        self._ticks.append(gain)

    def _last(self, span: int) -> Iterator[Gain]:
        """Its ticks, the newest first."""
        for index in range(1, min(span, len(self._ticks)) + 1):
            yield self._ticks[-index]

    def window(self, span: int) -> Gain:
        """The last `span` ticks (one of SPANS_S); its exemplars are few, the slowest first. Not to be changed, and
        true until the next tick."""
        total = self._sums[span]
        for key, part in total.phases.items():
            part.max_ns = max(gain.phases[key].max_ns for gain in self._last(span) if key in gain.phases)
        total.exemplars = {key: self._slowest(span, key) for key in total.phases}
        total.exemplars = {key: found for key, found in total.exemplars.items() if found}
        return total

    def _slowest(self, span: int, key: PhaseKey) -> list[Exemplar]:
        """One for each power of two, the newest there."""
        found: dict[int, Exemplar] = {}
        for gain in self._last(span):
            for exemplar in gain.exemplars.get(key, ()):
                power = exemplar.ns.bit_length()
                if power not in found or exemplar.time_unix_ns > found[power].time_unix_ns:
                    found[power] = exemplar
        return [found[power] for power in sorted(found, reverse=True)[:EXEMPLARS]]


def _add(total: Gain, gain: Gain) -> None:
    total.duration_s += gain.duration_s
    for key, part in gain.phases.items():
        if key not in total.phases:
            total.phases[key] = HistogramPart()
        total.phases[key].add(part)
    for step, counts in gain.counters.items():
        mine = total.counters.setdefault(step, {})
        for name, number in counts.items():
            mine[name] = mine.get(name, 0) + number


def _remove(total: Gain, gain: Gain) -> None:
    total.duration_s -= gain.duration_s
    for key, part in gain.phases.items():
        total.phases[key].remove(part)
        if not total.phases[key].buckets:
            del total.phases[key]
    for step, counts in gain.counters.items():
        mine = total.counters[step]
        for name, number in counts.items():
            mine[name] -= number
        if not any(mine.values()):
            del total.counters[step]
