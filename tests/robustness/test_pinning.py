"""Publishes of a running flow under open-loop load: law 1 (pinning) and law 2 (one message, one pin set).

Each test prints one line with what it counted. HEADRACE_SOAK_ROUNDS multiplies the publishes.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from headrace.client import AsyncClient
from tests.robustness.ledger import Outcome
from tests.robustness.pinned_flow import EFFECT, WORK, PinnedFlow
from tests.robustness.traffic import Traffic
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh, start_mesh

ROUNDS = int(os.environ.get("HEADRACE_SOAK_ROUNDS", "0"))
PUBLISHES = ROUNDS or 4
RATE = 300.0 if ROUNDS else 120.0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with start_mesh(tmp_path_factory.mktemp("pinning"), "fast", "--gateways", "2") as running:
        yield running


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
        for _ in range(PUBLISHES):
            work, effect = await flow.push(WORK), await flow.push(EFFECT)
            before = time.monotonic()
            reign = await flow.publish(work.reference, effect.reference)
            took.append(time.monotonic() - before)
            assert reign.pins == {"work": work.constant, "effect": effect.constant}
            await eventually(partial(has_answered, traffic, reign.deployment), within_s=20)
        attempts = await traffic.finish()
    ledger, pins = await flow.judge(traffic.run, attempts)
    slowest = max(attempt.latency_s for attempt in attempts)
    with capsys.disabled():
        print(
            f"\n{PUBLISHES} publishes at {RATE:g} requests/s, {sum(took) / len(took):.2f} s each "
            f"(longest {max(took):.2f} s), slowest answer {slowest * 1000:.0f} ms: {pins.line()}; {ledger.line()}"
        )
    assert ledger.ok, ledger.line()
    assert pins.ok, pins.complaints()
    assert ledger.acknowledged == ledger.attempted == ledger.effected
    assert len(pins.answered_by_deployment) == PUBLISHES + 1
    await client.stop(flow.name)


def has_answered(traffic: Traffic, deployment: int, times: int = 20) -> bool:
    """Whether a deployment has given so many of the newest answers."""
    return sum(attempt.deployment == deployment for attempt in traffic.attempts[-500:]) >= times
