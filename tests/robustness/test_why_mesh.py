"""Trouble of the mesh itself, injected from outside: `why` names it, through the API or, where that does not answer,
by what the command finds out itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from headrace.api.diagnosis.v1 import diagnosis_pb2
from headrace.client import AsyncClient
from headrace.model.causes import Cause
from tests.robustness.moody_flow import MoodyFlow, told
from tests.support import soak
from tests.support.commands import headrace
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh

pytestmark = pytest.mark.timeout(0 if soak.ASKED else 120)
WITHIN_S = 60.0 if soak.ASKED else 15.0
LOAD_S = 600.0 if soak.ASKED else 2.5


@pytest.fixture(scope="module")
def flow_name(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A flow that is healthy."""
    flow = MoodyFlow(mesh, tmp_path_factory.mktemp("healthy"), AsyncClient(mesh.api, timeout_s=30))

    async def make() -> None:
        async with flow.client:
            await flow.push()
            await flow.run()

    async def end() -> None:
        async with flow.client:
            await flow.remove()

    asyncio.run(make())
    yield flow.name
    asyncio.run(end())


async def test_nothing_is_wrong(mesh: RunningMesh, flow_name: str) -> None:
    async with AsyncClient(mesh.api) as client:
        answer = await client.explain(flow_name)
    assert answer.healthy
    assert [item.cause for item in answer.findings] == ["NO_INPUT", "NOTHING_WRONG"]
    assert [step.step for step in answer.steps] == ["entry", "work", "last"]
    assert headrace("why", flow_name, data=mesh.data).ok().startswith(f"{flow_name}: nothing is wrong")


@contextlib.contextmanager
def halted(mesh: RunningMesh, *roles: str) -> Iterator[list[int]]:
    """Processes of the mesh that get no turn meanwhile."""
    pids = [mesh.kill(role, number=signal.SIGSTOP) for role in roles]
    try:
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def named(mesh: RunningMesh, flow: str, cause: Cause) -> diagnosis_pb2.ExplainFlowResponse:
    """The answer, once this cause is named first."""

    async def first() -> diagnosis_pb2.ExplainFlowResponse:
        async with AsyncClient(mesh.api, timeout_s=10) as client:
            answer = await client.explain(flow)
        assert answer.findings[0].cause == cause, [(item.cause, item.summary) for item in answer.findings]
        return answer

    return await eventually(first, within_s=WITHIN_S, every_s=0.1)


async def healthy(mesh: RunningMesh, flow: str) -> None:
    async def nothing_wrong() -> bool:
        async with AsyncClient(mesh.api, timeout_s=10) as client:
            answer = await client.explain(flow)
        assert answer.healthy, [(item.cause, item.summary) for item in answer.findings]
        return True

    await eventually(nothing_wrong, within_s=30, every_s=0.1)


async def test_an_orchestrator_that_does_not_answer(mesh: RunningMesh, flow_name: str) -> None:
    """The command says what it knows without one."""
    began = time.monotonic()
    with halted(mesh, "orchestrator") as (pid,):
        done = await asyncio.to_thread(headrace, "why", flow_name, data=mesh.data)
    assert done.status == 3
    assert time.monotonic() - began < 10 + 2
    assert "1. ORCHESTRATOR_UNREACHABLE" in done.out
    assert f"orchestrator (process {pid}) is stopped (SIGSTOP)" in done.out
    await healthy(mesh, flow_name)


async def test_a_broker_that_does_not_answer(mesh: RunningMesh, flow_name: str) -> None:
    with halted(mesh, "broker"):
        answer = await named(mesh, flow_name, Cause.BROKER_UNREACHABLE)
        assert not answer.HasField("broker_ms")
    await healthy(mesh, flow_name)


async def test_an_agent_and_gateways_that_do_not_answer(mesh: RunningMesh, flow_name: str) -> None:
    """Two at once."""
    with halted(mesh, "agent", "gateway", "gateway-2"):
        answer = await named(mesh, flow_name, Cause.GATEWAY_GONE)
        assert "AGENT_GONE" in {item.cause for item in answer.findings}
    await healthy(mesh, flow_name)


async def test_a_slow_broker(mesh: RunningMesh, flow_name: str) -> None:
    """It gets a fifth of the time."""
    pid = mesh.pid_of("broker")

    async def slow_down() -> None:
        while True:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.4)  # tidy: pace
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.01)  # tidy: pace

    slowing = asyncio.create_task(slow_down())
    try:
        await named(mesh, flow_name, Cause.BROKER_SLOW)
    finally:
        slowing.cancel()
        os.kill(pid, signal.SIGCONT)
    await healthy(mesh, flow_name)


async def test_no_alarm_under_varied_load(mesh: RunningMesh, flow_name: str) -> None:
    """Bursts, pauses, and single messages."""
    await no_alarm(mesh, flow_name, LOAD_S)


async def no_alarm(mesh: RunningMesh, flow: str, for_s: float) -> int:
    """Answers how often it was asked; AssertionError at the first alarm."""
    asked, deadline = 0, time.monotonic() + for_s
    async with AsyncClient(mesh.api, timeout_s=30) as client:
        load = asyncio.create_task(_varied(client, flow))
        try:
            while time.monotonic() < deadline:
                answer = await client.explain(flow)
                assert answer.healthy, told(answer)
                asked += 1
        finally:
            load.cancel()
    return asked


async def _varied(client: AsyncClient, flow: str) -> None:
    chance = random.Random(7)
    while True:
        await asyncio.gather(*(client.inject(flow, b"{}") for _ in range(chance.choice((1, 3, 50, 200)))))
        await asyncio.sleep(chance.choice((0.0, 0.05, 0.5, 2.0)))  # tidy: pace
