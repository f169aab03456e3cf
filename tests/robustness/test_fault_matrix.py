"""Every fault point × every fault, on flows with fan-out, fan-in, an error path, a retry and a reply: the ledger.

Two flows run side by side on one mesh: in one the trigger and two steps are keyed, in the other none is. `make soak
ROUNDS=n` runs that many rounds. A failure prints its seed and the history of the messages concerned; HEADRACE_SEED=n
tells the same rounds in the same order (when they come is not ours to say).
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections import Counter, deque
from pathlib import Path

import pytest

from tests.robustness.matrix_flow import Ledger
from tests.robustness.matrix_mesh import matrix_rigs
from tests.robustness.matrix_plan import FAULTS, PASSERS, Plan, Plans
from tests.robustness.matrix_rig import FLOW, KILLS, MatrixRig, Round
from tests.support import soak

FLOWS = {FLOW: True, "plain": False}
# Rounds of each flow between two looks at the ledger.
SIDE_BY_SIDE, ALONE = 80, 12
# The short form does what fits into these times, with so many long stops for each flow.
SIDE_BY_SIDE_S, ALONE_S, LONG_STOPS = 80.0, 25.0, 3


@pytest.mark.timeout(300)
async def test_every_fault_at_every_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("HEADRACE_SEED") or random.randrange(10**6))
    chance = random.Random(seed)
    totals = Totals(seed)
    async with matrix_rigs(tmp_path, FLOWS) as rigs:
        acts = [Act(rig, Plans(chance, keyed=FLOWS[rig.flow])) for rig in rigs]
        while True:
            for act in acts:
                act.begin()
            try:
                await run(acts)
            finally:
                totals.rounds += [each for rig in rigs for each in rig.rounds]
            for rig in rigs:
                totals.ledgers.append(ledger := await rig.settle())
                assert ledger.ok, f"{rig.flow}, seed {seed}: {ledger.line()}\n" + "\n".join(
                    f"{rig.history(id)}\n  {ledger.why(id)}" for id in ledger.offenders[:3]
                )
            if len(totals.rounds) >= soak.ASKED:
                break
    missed = [point for rig in rigs for point in rig.missed]
    with capsys.disabled():
        print("\n" + totals.line(len(missed)))
    counted = [each for each in totals.rounds if each.held]
    points = {point for act in acts for point in act.plans.points}
    missing = {*points, *FAULTS} - {each.point for each in counted} - {each.fault for each in counted}
    assert len(missing) <= 2, f"seed {seed}: rounds that did not count: {missing}; not reached: {missed}"


class Act:
    """What one flow's rig does until the next look at the ledger."""

    def __init__(self, rig: MatrixRig, plans: Plans) -> None:
        self.rig, self.plans = rig, plans

    def begin(self) -> None:
        stops = self.plans.long_stops()
        if soak.ASKED:
            chosen = self.plans.mixed(stops + self.plans.side_by_side(SIDE_BY_SIDE))
        else:
            chosen = stops[:LONG_STOPS] + self.plans.side_by_side(1000)
        self.queues = [deque(plan for plan in chosen if plan.step == step) for step in PASSERS]
        self.alone = deque(self.plans.alone(ALONE if soak.ASKED else len(self.plans.points)))
        self.rig.begin()

    async def do(self, queue: deque[Plan], until: float, at_most: int = 1000) -> None:
        for _ in range(at_most):
            if not queue or time.monotonic() >= until:
                break
            plan = queue.popleft()
            await self.rig.one_round(plan.step, plan.point, plan.fault)


async def run(acts: list[Act]) -> None:
    """Each step's rounds one after the other, those of all others side by side; then those of the broker, one after
    the other. What has not begun in time is left, in the short form."""
    until = math.inf if soak.ASKED else time.monotonic() + SIDE_BY_SIDE_S
    async with asyncio.TaskGroup() as group:
        for act in acts:
            for queue in act.queues:
                group.create_task(act.do(queue, until))
    until = math.inf if soak.ASKED else time.monotonic() + ALONE_S
    while any(act.alone for act in acts) and time.monotonic() < until:
        for act in acts:
            now = time.time()
            await asyncio.gather(*(each.rig.all_done(now) for each in acts))
            await act.do(act.alone, until, at_most=1)


class Totals:
    """What is printed at the end."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._began = time.monotonic()
        self.rounds: list[Round] = []
        self.ledgers: list[Ledger] = []

    def line(self, missed: int) -> str:
        """Of ledgers that are all in order."""
        counted = [each for each in self.rounds if each.held]
        faults = Counter(each.fault for each in counted)
        slowest = max(self.rounds, key=lambda each: each.recovered_s)
        sums = {
            name: sum(getattr(each, name) for each in self.ledgers)
            for name in ("attempted", "acknowledged", "unknown", "refused", "effects", "dead_letters", "repeated")
        }
        return (
            f"matrix, seed {self._seed}: {time.monotonic() - self._began:.0f} s, {len(self.rounds)} rounds, "
            f"{len(counted)} counted (the victim held something), {sum(faults[kill] for kill in KILLS)} kills "
            f"({dict(faults)}), {missed} points not reached; {sums}: lost 0, duplicated 0, out of order 0; "
            f"slowest: {slowest.line()}"
        )
