"""Publishes of a running flow under open-loop load: law 1 (pinning) and law 2 (one message, one pin set).

Each test prints one line with what it counted. In a soak: more publishes, faster requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import pytest

from headrace.client import AsyncClient
from tests.robustness.ledger import Outcome
from tests.robustness.pinned_flow import EFFECT, WORK, PinnedFlow
from tests.robustness.traffic import Traffic, answers_by
from tests.support import soak
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh

ROUNDS = soak.rounds(one_in=40)
# The short form publishes for so long, but at least so often.
ROW_S, ROW_AT_LEAST = 15.0, 4
MOVES = ROUNDS or 2
ACK_WAIT_S = 5.0
WORK_S = 30.0 if ROUNDS else 8.0
RATE = 300.0 if ROUNDS else 120.0


@pytest.fixture
async def client(mesh: RunningMesh) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(mesh.api) as opened:
        yield opened


@pytest.mark.timeout(120)
async def test_publishes_in_a_row_under_load(
    mesh: RunningMesh, client: AsyncClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = PinnedFlow("row", tmp_path).use(client)
    await flow.begin()
    took: list[float] = []
    async with Traffic(mesh.endpoints.gateways, flow.path, rate=RATE) as traffic:
        await eventually(lambda: traffic.counted(Outcome.OK) >= 50, within_s=20)
        began = time.monotonic()
        while len(took) < ROUNDS or (not ROUNDS and (time.monotonic() - began < ROW_S or len(took) < ROW_AT_LEAST)):
            work, effect = await flow.push(WORK), await flow.push(EFFECT)
            before = time.monotonic()
            reign = await flow.publish(work.reference, effect.reference)
            took.append(time.monotonic() - before)
            assert reign.pins == {"work": work.constant, "effect": effect.constant}
            await answers_by(traffic, reign.deployment)
        attempts = await traffic.finish()
    ledger, pins = await flow.judge(traffic.run, attempts)
    slowest = max(attempt.latency_s for attempt in attempts)
    with capsys.disabled():
        print(
            f"\n{len(took)} publishes at {RATE:g} requests/s, {sum(took) / len(took):.2f} s each "
            f"(longest {max(took):.2f} s), slowest answer {slowest * 1000:.0f} ms: {pins.line()}; {ledger.line()}"
        )
    assert ledger.ok, ledger.line()
    assert pins.ok, pins.complaints()
    assert ledger.acknowledged == ledger.attempted == ledger.effected, ledger.line()
    assert len(pins.answered_by_deployment) == len(took) + 1
    await client.stop(flow.name)


@pytest.mark.timeout(120)
async def test_latest_moves_every_100_ms_and_nothing_that_runs_changes(
    mesh: RunningMesh, client: AsyncClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """New revisions all the time, publishes of `latest` in between, scaling out and in, components, sidecars and
    an agent killed."""
    flow = PinnedFlow("moving", tmp_path).use(client)
    reign = await flow.begin()
    kills = 0
    async with Traffic(mesh.endpoints.gateways, flow.path, rate=RATE / 3) as traffic, Pusher(flow) as pusher:
        for number in range(MOVES):
            await pusher.moved(5)
            for role in ("component", "sidecar"):
                mesh.kill(role, flow.name, "work", deployment=reign.deployment)
                kills += 1
                soak.TOTALS.round()
                await answers_by(traffic, reign.deployment, after=traffic.sent)
            await client.scale(flow.name, "work", 2)
            await answers_by(traffic, reign.deployment, after=traffic.sent)
            if number % 2:
                await client.scale(flow.name, "work", 1)
            reign = await flow.publish()
            await answers_by(traffic, reign.deployment)
            if number == MOVES - 1 or number % 5 == 4:
                mesh.kill("agent")
                kills += 1
                soak.TOTALS.round()
                await answers_by(traffic, reign.deployment, after=traffic.sent)
        attempts = await traffic.finish()
    ledger, pins = await flow.judge(traffic.run, attempts, within_s=45)
    with capsys.disabled():
        print(
            f"\n`latest` moved {pusher.moves} times (every {pusher.every_ms:.0f} ms), {MOVES} publishes, {kills} "
            f"kills: {pins.line()}; {ledger.line()}"
        )
    assert pins.ok, pins.complaints()
    # The agent took the processes of the effect step with it: what was cut off there runs again.
    assert replace(ledger, duplicated=frozenset()).ok, ledger.line()
    assert len(ledger.duplicated) <= 64
    assert pusher.moves >= MOVES * 5
    assert len(set(pins.answered_by_revision)) == MOVES + 1
    await client.stop(flow.name)


@pytest.mark.timeout(150)
async def test_long_work_ends_on_the_old_code_and_the_new_code_does_not_wait_for_it(
    mesh: RunningMesh, client: AsyncClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Longer than the ack wait: the deadline is extended, nothing is delivered twice."""
    flow = PinnedFlow("slow", tmp_path, seconds=WORK_S).use(client)
    flow.reply_timeout_s = WORK_S + 30.0
    old = await flow.begin()
    async with Traffic(mesh.endpoints.gateways, flow.path, rate=10.0, answer_limit_s=WORK_S + 40.0) as traffic:
        await eventually(lambda: traffic.under_way >= 10, within_s=20)
        work = await flow.push(WORK)
        flow.work_config = {"seconds": 0.02}
        new = await flow.publish(work.reference)
        took_s = (new.took_over or 0.0) - new.began
        await answers_by(traffic, new.deployment)
        early = traffic.answers_by(old.deployment)
        attempts = await traffic.finish()
    ledger, pins = await flow.judge(traffic.run, attempts)
    by_old = [effect for effect in flow.effects(traffic.run) if effect.touched[0].deployment == old.deployment]
    with capsys.disabled():
        print(
            f"\n{WORK_S:g} s of work a message, ack wait {ACK_WAIT_S:g} s, publish took {took_s:.2f} s: "
            f"{pins.line()}; {ledger.line()}"
        )
    assert ledger.ok, ledger.line()
    assert ledger.acknowledged == ledger.attempted
    assert pins.ok, pins.complaints()
    assert early == 0, "the old code had ended before the new one answered: the test proves nothing"
    assert len(by_old) >= 10
    assert {effect.attempt for effect in by_old} == {1}
    await client.stop(flow.name)


class Pusher:
    """Pushes a new revision of the work step's component every 100 ms, so that `latest` moves each time."""

    def __init__(self, flow: PinnedFlow) -> None:
        self._flow = flow
        self._stopping = asyncio.Event()
        self._began = 0.0
        self.moves = 0

    async def __aenter__(self) -> Pusher:
        self._began = time.monotonic()
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._group.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        await self._group.__aexit__(kind, error, trace)

    @property
    def every_ms(self) -> float:
        return (time.monotonic() - self._began) * 1000 / max(1, self.moves)

    async def moved(self, times: int) -> None:
        """Waits until `latest` has moved so often from now on."""
        wanted = self.moves + times
        await eventually(lambda: self.moves >= wanted, within_s=20)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            due = self._began + (self.moves + 1) * 0.1
            await self._flow.push(WORK)
            await self._flow.observe()
            self.moves += 1
            if (ahead := due - time.monotonic()) > 0:
                await asyncio.sleep(ahead)  # tidy: pace
