"""Trouble, injected from outside on a real mesh: `why` names the right cause first within 10 s, and none once it is
over."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from headrace.client import AsyncClient
from headrace.model.causes import Cause
from tests.robustness.moody_flow import MoodyFlow
from tests.support.commands import headrace
from tests.support.mesh import RunningMesh

pytestmark = pytest.mark.timeout(120)
SMALL = "max_waiting: 10"
SETTINGS = "prefetch: 2, retry: {attempts: 3, backoff: 4s, jitter: 0}"


@pytest.fixture(scope="module")
def flow(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MoodyFlow]:
    """One flow for most troubles; each test leaves it healthy."""
    made = MoodyFlow(mesh, tmp_path_factory.mktemp("moody"), SMALL, SETTINGS)
    made.run()
    yield made
    made.remove()


@pytest.fixture(autouse=True)
def released(flow: MoodyFlow) -> Iterator[None]:
    """Whatever a test held goes on at its end."""
    yield
    flow.release()


async def test_nothing_is_wrong(flow: MoodyFlow) -> None:
    answer = await flow.why()
    assert answer.healthy
    assert [item.cause for item in answer.findings] == ["NO_INPUT", "NOTHING_WRONG"]
    assert [step.step for step in answer.steps] == ["entry", "work", "last"]
    assert headrace("why", flow.name, data=flow.mesh.data).ok().startswith(f"{flow.name}: nothing is wrong")


async def test_a_busy_component_with_the_call_and_where_it_stands(flow: MoodyFlow) -> None:
    flow.hold()
    await flow.inject(4, do="wait")
    found = await flow.named(Cause.COMPONENT_BUSY, "work")
    assert any("until_gone in component.py" in text for text in found.evidence), found
    assert any("execution" in text for text in found.evidence)
    assert found.commands[0] == f"headrace flow scale {flow.name} work=2"
    flow.release()
    await flow.is_healthy()


async def test_a_call_that_waits_in_a_thread_and_those_that_wait_for_its_step(flow: MoodyFlow) -> None:
    flow.hold()
    await flow.inject(24, last="wait")
    found = await flow.named(Cause.COMPONENT_BUSY, "last")
    assert any("until_gone_at_once in component.py" in text for text in found.evidence), found
    assert list(found.affects) == ["work", "entry"]
    full = next(item for item in (await flow.why("work")).findings if item.cause == "DOWNSTREAM_FULL")
    assert full.commands[0] == f"headrace why {flow.name}/last"
    flow.release()
    await flow.is_healthy()


async def test_a_blocked_event_loop_with_its_stack(flow: MoodyFlow) -> None:
    flow.hold()
    await flow.inject(do="block")
    found = await flow.named(Cause.COMPONENT_BLOCKED, "work")
    assert "until_gone_at_once in component.py" in found.evidence[0], found
    flow.release()
    await flow.is_healthy()


async def test_waiting_for_a_retry(flow: MoodyFlow) -> None:
    flow.hold()
    await flow.inject(do="fail")
    found = await flow.named(Cause.RETRY_DELAY, "work")
    assert any("SHAKY: not today" in text for text in found.evidence)
    flow.release()
    await flow.is_healthy()


async def test_a_stopped_component(flow: MoodyFlow) -> None:
    pid = flow.mesh.kill("component", flow.name, "work", signal.SIGSTOP)
    await flow.inject()
    try:
        found = await flow.named(Cause.COMPONENT_STOPPED, "work")
        assert found.commands[0] == f"kill -CONT {pid}"
    finally:
        os.kill(pid, signal.SIGCONT)
    await flow.is_healthy()


async def test_a_silent_sidecar(flow: MoodyFlow) -> None:
    pid = flow.mesh.kill("sidecar", flow.name, "work", signal.SIGSTOP)
    await flow.inject()
    try:
        found = await flow.named(Cause.SIDECAR_SILENT, "work")
        assert str(pid) in found.evidence[0]
    finally:
        os.kill(pid, signal.SIGCONT)
    await flow.is_healthy()


async def test_a_suspended_flow(flow: MoodyFlow) -> None:
    async with AsyncClient(flow.mesh.api) as client:
        await client.suspend(flow.name)
        found = await flow.named(Cause.FLOW_SUSPENDED)
        assert found.commands[0] == f"headrace flow resume {flow.name}"
        await client.resume(flow.name)
    await flow.is_healthy()


async def test_the_command_says_it_with_its_exit_status(flow: MoodyFlow) -> None:
    flow.hold()
    await flow.inject(do="wait")
    await flow.named(Cause.COMPONENT_BUSY, "work")
    done = headrace("why", f"{flow.name}/work", data=flow.mesh.data)
    assert done.status == 4
    assert done.out.splitlines()[:1] == [f"{flow.name}/work: stalled"], done
    assert "1. COMPONENT_BUSY" in done.out
    assert headrace("why", f"{flow.name}/nowhere", data=flow.mesh.data).refused().startswith("headrace: flow")
    assert headrace("why", "no-such-flow", data=flow.mesh.data).status == 1
    flow.release()
    await flow.is_healthy()


async def test_an_orchestrator_that_does_not_answer(flow: MoodyFlow) -> None:
    """The command says what it knows without one."""
    pid = flow.mesh.kill("orchestrator", number=signal.SIGSTOP)
    began = time.monotonic()
    try:
        done = await asyncio.to_thread(headrace, "why", flow.name, data=flow.mesh.data)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert done.status == 3
    assert time.monotonic() - began < 10
    assert "1. ORCHESTRATOR_UNREACHABLE" in done.out
    assert f"orchestrator (process {pid}) is stopped (SIGSTOP)" in done.out
    await flow.is_healthy()
