"""kill -9 of each role in each phase of a publish: the operation finishes or fails cleanly, pins hold, nothing
half-made stays. In a soak: every role in every phase.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

import pytest

from headrace.client import AsyncClient
from headrace.model.errors import DeadlineExceeded, HeadraceError, Unavailable
from tests.robustness.ledger import Effect, Outcome, Verdict
from tests.robustness.pin_check import PinVerdict
from tests.robustness.pinned_flow import WORK, PinnedFlow, stop
from tests.robustness.settled import Inspector, PhaseWatch
from tests.robustness.traffic import Traffic
from tests.support import soak
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh

ROUNDS = soak.rounds(one_in=1000)
ROLES = ("component", "sidecar", "agent", "orchestrator", "registry", "gateway", "broker")
PHASES = ("PREPARING", "WARM", "ACTIVE", "DRAINING")
SHORT = (
    ("orchestrator", "PREPARING"),
    ("component", "PREPARING"),
    ("registry", "PREPARING"),
    ("agent", "WARM"),
    ("orchestrator", "ACTIVE"),
    ("broker", "ACTIVE"),
    ("sidecar", "DRAINING"),
    ("gateway", "DRAINING"),
)
CASES = list(itertools.product(ROLES, PHASES)) if ROUNDS else SHORT
RATE = 80.0
# How long after a deployment has begun to prepare the blow may fall, seconds: it lasts about a second.
PREPARING_SPREAD_S = 0.8


@dataclass(frozen=True)
class PublishRound:
    """What one kill did to one publish. `outcome` is `took over`, `failed (<reason>)` or `in doubt (<reason>)`."""

    role: str
    phase: str
    outcome: str
    settled_s: float
    active: int
    ledger: Verdict
    pins: PinVerdict
    effects: list[Effect]

    def line(self) -> str:
        return (
            f"kill {self.role} at {self.phase}: publish {self.outcome}, settled on d{self.active} after "
            f"{self.settled_s:.1f} s; {self.pins.line()}; {self.ledger.line()}"
        )


@pytest.fixture(scope="module")
def kept(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PinnedFlow]:
    """One flow for all rounds: what a round leaves behind is the next one's start."""
    flow = PinnedFlow("phases", tmp_path_factory.mktemp("effects"))
    yield flow
    stop(mesh, flow)


@pytest.fixture
async def flow(mesh: RunningMesh, kept: PinnedFlow) -> AsyncIterator[PinnedFlow]:
    async with AsyncClient(mesh.api) as client:
        kept.use(client)
        if not kept.reigns:
            await kept.begin()
        yield kept


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("role", "phase"), CASES)
async def test_a_kill_in_a_phase_of_a_publish(
    mesh: RunningMesh, flow: PinnedFlow, role: str, phase: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Inspector(mesh) as inspector:
        for number in range(ROUNDS or 1):
            chance = random.Random(f"{role} {phase} {number}")
            result = await publish_round(mesh, flow, inspector, role, phase, chance)
            with capsys.disabled():
                print("\n" + result.line())
            check(result)


def check(result: PublishRound) -> None:
    """The laws, as far as a kill of that role may not touch them."""
    verdict, pins = result.ledger, result.pins
    assert pins.ok, pins.complaints()
    assert replace(verdict, duplicated=frozenset()).ok, verdict.line()
    repeated = Counter(effect.id for effect in {replace(effect, attempt=1) for effect in result.effects})
    assert max(repeated.values()) == 1, "an effect was made for two messages, or by two revisions"
    if result.role != "agent":  # it takes the effect step's own processes with it: what was cut off runs again
        assert verdict.ok, verdict.line()


async def publish_round(
    mesh: RunningMesh, flow: PinnedFlow, inspector: Inspector, role: str, phase: str, chance: random.Random
) -> PublishRound:
    """A publish of a new revision under traffic, with one kill in the phase."""
    before = await eventually(lambda: inspector.settled(flow), within_s=30, every_s=0.1)
    work = await flow.push(WORK)
    blow = Blow(mesh, flow.name, role, phase, before, chance)
    async with PhaseWatch(inspector.connection, flow.name) as watch, asyncio.TaskGroup() as group:
        watch.when(blow.on_phase)
        async with Traffic(mesh.endpoints.gateways, flow.path, rate=RATE) as traffic:
            await eventually(lambda: traffic.counted(Outcome.OK) >= 20, within_s=20)
            striking = group.create_task(blow.strike())
            outcome = await publish(flow, work.reference)
            finished = time.monotonic()
            await striking
            active = await eventually(lambda: inspector.settled(flow, idle=False), within_s=60, every_s=0.1)
            settled_s = time.monotonic() - finished
            await eventually(lambda: traffic.attempts[-1].outcome is Outcome.OK, within_s=20)
            attempts = await traffic.finish()
    ledger, pins = await flow.judge(traffic.run, attempts)
    took_over = active != before
    if not outcome.startswith("in doubt"):
        assert took_over == (outcome == "took over"), f"{outcome}, but d{active} runs"
    return PublishRound(role, phase, outcome, settled_s, active, ledger, pins, flow.effects(traffic.run))


async def publish(flow: PinnedFlow, work: str) -> str:
    """Publishes; answers how it ended, as far as its caller knows."""
    try:
        await flow.publish(work)
        return "took over"
    except (Unavailable, DeadlineExceeded) as error:
        return f"in doubt ({error.reason})"
    except HeadraceError as error:
        return f"failed ({error.reason})"


class Blow:
    """One kill -9 as soon as the phase is entered: by the new deployment, or for DRAINING by the old one."""

    def __init__(self, mesh: RunningMesh, flow: str, role: str, phase: str, before: int, chance: random.Random) -> None:
        self._mesh, self._flow, self._role, self._phase, self._before = mesh, flow, role, phase, before
        self._delay_s = chance.uniform(0, PREPARING_SPREAD_S) if phase == "PREPARING" else 0.0
        self._deployment = 0
        self._entered = asyncio.Event()

    def on_phase(self, deployment: int, phase: str) -> None:
        old = deployment <= self._before
        if phase == self._phase and old == (phase == "DRAINING") and not self._entered.is_set():
            self._deployment = deployment
            self._entered.set()

    async def strike(self) -> None:
        async with asyncio.timeout(40):
            await self._entered.wait()
        await asyncio.sleep(self._delay_s)  # tidy: pace
        if self._role in ("sidecar", "component"):
            await eventually(self._kill_instance, within_s=10, every_s=0.005)
        else:
            self._mesh.kill(self._role)
        soak.TOTALS.round()

    def _kill_instance(self) -> bool:
        return self._mesh.kill(self._role, self._flow, "work", deployment=self._deployment) > 0
