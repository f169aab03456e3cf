"""Every fault point × every fault, on a flow with fan-out, fan-in, an error path, a retry and a reply: the ledger.

`make soak ROUNDS=n` runs that many rounds and prints a line a minute. A failure prints its seed and the history of
the messages concerned; HEADRACE_SEED=n tells the same rounds in the same order (when they come is not ours to say).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from headrace.edge.fault_points import POINTS
from tests.robustness.matrix_flow import KEYED, KEYED_STEPS, STEPS, Ledger
from tests.robustness.matrix_rig import CURSOR_POINTS, MatrixRig, Round, matrix_rig

ROUNDS = int(os.environ.get("HEADRACE_SOAK_ROUNDS", "0"))
ACT_ROUNDS = 200
# The short form does all pairs of point and fault on a quiet machine, and what fits into this time on a busy one.
SHORT_S = 75.0
FAULTS = ("sidecar", "component", "broker", "cut", "stop")
SENDS = ("before-publish", "after-publish", "before-publish-ack", "after-publish-ack")
COMMITS = ("before-commit", "after-commit", "before-commit-ack", "after-commit-ack")
# The steps that pass a point; all that are not named here pass it. What a keyed step sends goes with its cursor.
ONLY = {
    **dict.fromkeys(SENDS, ("split", "left", "right", "gateway", *(() if KEYED else ("hook", "keep")))),
    **dict.fromkeys(COMMITS, ("hook", "keep") if KEYED else ()),
    **dict.fromkeys(CURSOR_POINTS, KEYED_STEPS if KEYED else ()),
    **dict.fromkeys(("before-dead-letter", "after-dead-letter"), ("split",)),
    **dict.fromkeys(("before-reply", "after-reply"), ("split", "sink")),
}

PASSED = [point for point in POINTS if ONLY.get(point, STEPS)]

Plan = tuple[str, str, str]


def plans(chance: random.Random) -> Iterator[Plan]:
    """For ever: (step, point, fault); all points once, each with another fault, before any point comes again, and
    each point with each fault before any pair does; in random order, at a step of its own choice."""
    for turn in itertools.count():
        if turn % len(FAULTS) == 0:
            points = chance.sample(PASSED, len(PASSED))
        for index, point in enumerate(points):
            fault = FAULTS[(index + turn) % len(FAULTS)]
            steps = [step for step in ONLY.get(point, STEPS) if step != "gateway" or fault != "component"]
            yield chance.choice(steps), point, fault


async def run_act(rig: MatrixRig, chosen: list[Plan], until: float, report: Callable[[], None]) -> None:
    """Each step's rounds one after the other, those of different steps side by side; none is begun after `until`."""
    queues = {step: deque(plan for plan in chosen if plan[0] == step) for step in (*STEPS, "gateway")}

    async def work(step: str) -> None:
        while queues[step] and time.monotonic() < until:
            await rig.one_round(*queues[step].popleft())
            report()

    async with asyncio.TaskGroup() as group:
        for step in queues:
            group.create_task(work(step))


@pytest.mark.timeout(300)
async def test_every_fault_at_every_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("HEADRACE_SEED") or random.randrange(10**6))
    source = plans(random.Random(seed))
    left = ROUNDS or len(PASSED) * len(FAULTS)
    until = math.inf if ROUNDS else time.monotonic() + SHORT_S
    totals = Totals(seed, capsys)
    async with matrix_rig(tmp_path) as rig:
        while left > 0:
            chosen = [next(source) for _ in range(min(left, ACT_ROUNDS))]
            left -= len(chosen)
            rig.begin()
            try:
                await run_act(rig, chosen, until, lambda: totals.look(rig))
            finally:
                totals.rounds += rig.rounds
            ledger = await rig.settle()
            totals.add(rig, ledger)
            assert ledger.ok, f"seed {seed}: {ledger.line()}\n" + "\n".join(
                f"{rig.history(id)}\n  {ledger.why(id)}" for id in ledger.offenders[:3]
            )
    totals.say("end")
    counted = [each for each in totals.rounds if each.held]
    missing = {*PASSED, *FAULTS} - {each.point for each in counted} - {each.fault for each in counted}
    assert len(missing) <= 2, f"seed {seed}: rounds that did not count: {missing}; not reached: {totals.missed}"


class Totals:
    """What is printed, once a minute and at the end."""

    def __init__(self, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
        self._seed, self._capsys = seed, capsys
        self._began = self._said_at = time.monotonic()
        self.rounds: list[Round] = []
        self.missed: list[str] = []
        self.ledgers: list[Ledger] = []

    def look(self, rig: MatrixRig) -> None:
        if time.monotonic() - self._said_at >= 60:
            self._said_at = time.monotonic()
            self.say("so far", rig.rounds)

    def add(self, rig: MatrixRig, ledger: Ledger) -> None:
        self.missed += rig.missed
        rig.missed.clear()
        self.ledgers.append(ledger)

    def say(self, when: str, more: Sequence[Round] = ()) -> None:
        done = [*self.rounds, *more]
        counted = [each for each in done if each.held]
        faults = Counter(each.fault for each in counted)
        kills = faults["sidecar"] + faults["component"] + faults["broker"]
        slowest = max(done, key=lambda each: each.recovered_s, default=None)
        sums = {
            name: sum(getattr(each, name) for each in self.ledgers)
            for name in ("attempted", "acknowledged", "unknown", "refused", "effects", "dead_letters", "repeated")
        }
        with self._capsys.disabled():
            print(
                f"\nmatrix, seed {self._seed}, {when}: {time.monotonic() - self._began:.0f} s, {len(done)} rounds, "
                f"{len(counted)} counted (the victim held something), {kills} kills ({dict(faults)}), "
                f"{len(self.missed)} points not reached; settled so far {sums}: lost 0, duplicated 0, out of order 0; "
                f"slowest: {slowest.line() if slowest else '-'}"
            )
