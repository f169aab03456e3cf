"""Which faults the matrix does at which points of which steps, and in what order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from headrace.edge.fault_points import POINTS
from tests.robustness.matrix_flow import KEYED_STEPS, STEPS
from tests.robustness.matrix_rig import CURSOR_POINTS

ALONE = "broker"
# Those that are done side by side; kills twice as often as what passes by itself.
SIDE_BY_SIDE = ("sidecar", "component", "cut", "sidecar", "component", "stop")
LONG_STOP = "long stop"
FAULTS = frozenset({*SIDE_BY_SIDE, LONG_STOP, ALONE})
SENDS = ("before-publish", "after-publish", "before-publish-ack", "after-publish-ack")
COMMITS = ("before-commit", "after-commit", "before-commit-ack", "after-commit-ack")
PASSERS = (*STEPS, "gateway")


@dataclass(frozen=True)
class Plan:
    """One round to do."""

    step: str
    point: str
    fault: str


class Plans:
    """For ever: `side_by_side` and `alone` answer the next so many. Each point comes once before any comes again,
    each time with the next fault; in random order, at a step of its own choice."""

    def __init__(self, chance: random.Random, *, keyed: bool) -> None:
        self._chance = chance
        self._passers = passers(keyed=keyed)
        self._side_by_side = self._endless(SIDE_BY_SIDE)
        self._alone = self._endless((ALONE,))

    @property
    def points(self) -> Sequence[str]:
        return list(self._passers)

    def side_by_side(self, count: int) -> list[Plan]:
        return list(itertools.islice(self._side_by_side, count))

    def alone(self, count: int) -> list[Plan]:
        """Those of the broker."""
        return list(itertools.islice(self._alone, count))

    def long_stops(self) -> list[Plan]:
        """One for each step and the gateway, at a point of its own; in random order."""
        points = {step: [point for point, steps in self._passers.items() if step in steps] for step in PASSERS}
        return [
            Plan(step, self._chance.choice(points[step]), LONG_STOP)
            for step in self._chance.sample(PASSERS, len(PASSERS))
            if points[step]
        ]

    def mixed(self, plans: list[Plan]) -> list[Plan]:
        """In random order."""
        return self._chance.sample(plans, len(plans))

    def _endless(self, faults: Sequence[str]) -> Iterator[Plan]:
        for turn in itertools.count():
            if turn % len(faults) == 0:
                points = self._chance.sample(self.points, len(self._passers))
            for index, point in enumerate(points):
                fault = faults[(index + turn) % len(faults)]
                steps = [step for step in self._passers[point] if step != "gateway" or fault != "component"]
                yield Plan(self._chance.choice(steps), point, fault)


def passers(*, keyed: bool) -> Mapping[str, Sequence[str]]:
    """The points that are passed in a flow, and by which steps. What a keyed step sends goes with its cursor. The
    gateway, which all flows share, is a victim of the keyed one's rounds."""
    plain = ("split", "left", "right", *(("gateway",) if keyed else ("hook", "keep")))
    only: dict[str, Sequence[str]] = {
        **dict.fromkeys(SENDS, plain),
        **dict.fromkeys(COMMITS, ("hook", "keep") if keyed else ()),
        **dict.fromkeys(CURSOR_POINTS, KEYED_STEPS if keyed else ()),
        **dict.fromkeys(("before-dead-letter", "after-dead-letter"), ("split",)),
        **dict.fromkeys(("before-reply", "after-reply"), ("split", "sink")),
    }
    return {point: steps for point in POINTS if (steps := only.get(point, STEPS))}
