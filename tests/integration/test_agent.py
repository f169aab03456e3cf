"""The agent as a real process, with a stand-in for the sidecar."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from headrace.api.agent.v1 import agent_pb2, agent_pb2_grpc
from headrace.edge.child_process import ChildProcess, Command
from headrace.edge.grpc_channel import open_channel
from headrace.edge.process_table import processes_with
from tests.support.eventually import eventually

UP = agent_pb2.INSTANCE_STATE_UP


@dataclass
class Agent:
    process: ChildProcess
    stub: agent_pb2_grpc.AgentServiceAsyncStub
    run_dir: Path

    async def start(self, step: str = "price", generation: int = 1, deployment: int = 1, replica: int = 0) -> str:
        request = agent_pb2.StartInstanceRequest(spec=spec(step, deployment, replica), generation=generation)
        return (await self.stub.StartInstance(request)).instance.spec.name

    async def stop(self, name: str, generation: int = 1, grace_ms: int = 0) -> None:
        await self.stub.StopInstance(agent_pb2.StopInstanceRequest(name=name, generation=generation, grace_ms=grace_ms))

    async def instance(self, name: str) -> agent_pb2.Instance:
        listed = (await self.stub.ListInstances(agent_pb2.ListInstancesRequest())).instances
        found = [instance for instance in listed if instance.spec.name == name]
        assert found, f"{name} is not listed"
        return found[0]

    async def up(self, name: str, starts: int = 1) -> agent_pb2.Instance:
        async def is_up() -> agent_pb2.Instance | None:
            instance = await self.instance(name)
            return instance if instance.state == UP and instance.starts >= starts else None

        instance = await eventually(is_up)
        assert instance is not None
        return instance

    def processes(self, name: str) -> list[int]:
        return [pid for pid in processes_with("HEADRACE_INSTANCE", name) if self.owns(pid)]

    def owns(self, pid: int) -> bool:
        return pid in processes_with("HEADRACE_AGENT", str(self.run_dir))


def spec(step: str, deployment: int = 1, replica: int = 0) -> agent_pb2.InstanceSpec:
    return agent_pb2.InstanceSpec(
        name=f"default.orders.d{deployment}.{step}.{replica}",
        workspace="default",
        flow="orders",
        deployment=deployment,
        step=step,
        replica=replica,
        plan_digest="sha256:" + "0" * 64,
    )


@contextlib.asynccontextmanager
async def run_agent(run_dir: Path, limit: int = 500) -> AsyncIterator[Agent]:
    arguments = (sys.executable, "-m", "tests.support.agent_with_stand_in", str(run_dir), str(limit))
    command = Command(arguments, log_file=run_dir / "agent.log")
    process = ChildProcess.spawn(command, readiness=True)
    try:
        facts = await process.ready(10)
        async with open_channel(str(facts["address"])) as channel:
            yield Agent(process, agent_pb2_grpc.AgentServiceStub(channel), run_dir)
    finally:
        await process.end(4)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    async with run_agent(tmp_path) as running:
        yield running


async def test_an_instance_starts_and_stops_with_everything_it_started(agent: Agent) -> None:
    name = await agent.start("orphans")
    instance = await agent.up(name)
    assert instance.address == f"unix:{agent.run_dir}/{instance.pid}.sock"
    await eventually(lambda: len(agent.processes(name)) == 3)  # sidecar, tied component, untied grandchild
    await agent.stop(name)
    assert agent.processes(name) == []
    with pytest.raises(AssertionError):
        await agent.instance(name)
    await agent.stop(name)  # again: nothing to do


async def test_the_same_start_twice_is_one_instance_and_raises_the_generation(agent: Agent) -> None:
    name = await agent.start(generation=3)
    pid = (await agent.up(name)).pid
    assert await agent.start(generation=7) == name
    instance = await agent.instance(name)
    assert (instance.pid, instance.generation, instance.starts) == (pid, 7, 1)


async def test_a_lower_generation_is_refused_also_after_a_stop(agent: Agent) -> None:
    name = await agent.start(generation=5)
    for call in (agent.start(generation=4), agent.stop(name, generation=4)):
        assert await refusal(call) == (grpc.StatusCode.FAILED_PRECONDITION, "STALE_GENERATION")
    await agent.stop(name, generation=6)
    assert await refusal(agent.start(generation=5)) == (grpc.StatusCode.FAILED_PRECONDITION, "STALE_GENERATION")


async def test_another_spec_under_the_same_name_is_refused(agent: Agent) -> None:
    await agent.start()
    other = spec("price")
    other.plan_digest = "sha256:" + "1" * 64
    call = agent.stub.StartInstance(agent_pb2.StartInstanceRequest(spec=other, generation=9))
    assert await refusal(call) == (grpc.StatusCode.ALREADY_EXISTS, "SPEC_DIFFERS")
    wrong = spec("price")
    wrong.name = "default.orders.d2.price.0"
    call = agent.stub.StartInstance(agent_pb2.StartInstanceRequest(spec=wrong, generation=9))
    assert (await refusal(call))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_killed_sidecar_is_started_again_and_its_orphans_end_first(agent: Agent) -> None:
    name = await agent.start("orphans")
    first = await agent.up(name)
    before = await eventually(lambda: len(agent.processes(name)) == 3 and agent.processes(name))
    os.kill(first.pid, signal.SIGKILL)
    second = await agent.up(name, starts=2)
    assert second.pid != first.pid
    assert second.last_exit == "killed by SIGKILL"
    assert not set(before) & set(agent.processes(name))


async def test_a_crash_loop_backs_off_and_says_how_it_ended(agent: Agent) -> None:
    name = await agent.start("crash")

    async def crashed_thrice() -> bool:
        instance = await agent.instance(name)
        return instance.starts >= 3 and instance.state == agent_pb2.INSTANCE_STATE_BACKING_OFF

    await eventually(crashed_thrice)
    assert (await agent.instance(name)).last_exit == "exit status 3"
    assert "cannot import price" in (agent.run_dir / "logs" / f"{name}.log").read_text()
    await agent.stop(name)


async def test_what_ignores_sigterm_is_killed_after_the_grace(agent: Agent) -> None:
    name = await agent.start("stubborn")
    await agent.up(name)
    began = time.monotonic()
    await agent.stop(name, grace_ms=300)
    assert 0.25 < time.monotonic() - began < 3
    assert agent.processes(name) == []


async def test_a_stop_goes_on_when_its_caller_goes_away(agent: Agent) -> None:
    name = await agent.start("stubborn")
    await agent.up(name)
    request = agent_pb2.StopInstanceRequest(name=name, generation=1, grace_ms=500)
    with pytest.raises(grpc.aio.AioRpcError):
        await agent.stub.StopInstance(request, timeout=0.1)
    await eventually(lambda: agent.processes(name) == [])


async def test_a_start_during_a_stop_waits_and_starts_anew(agent: Agent) -> None:
    name = await agent.start("stubborn")
    first = await agent.up(name)
    stop = asyncio.ensure_future(agent.stop(name, grace_ms=300))
    await eventually(lambda: is_state(agent, name, agent_pb2.INSTANCE_STATE_STOPPING))
    await agent.start("stubborn")
    await stop
    assert (await agent.up(name)).pid != first.pid
    await agent.stop(name, grace_ms=100)


async def is_state(agent: Agent, name: str, state: agent_pb2.InstanceState.ValueType) -> bool:
    return (await agent.instance(name)).state == state


async def test_a_watch_tells_all_first_and_then_each_change(agent: Agent) -> None:
    first_name = await agent.start("price")
    await agent.up(first_name)
    watch = agent.stub.WatchInstances(agent_pb2.WatchInstancesRequest())
    try:
        first = await watch.read()
        assert [instance.spec.name for instance in first.instances] == [first_name]
        name = await agent.start("check")
        seen = []
        async with asyncio.timeout(10):
            while UP not in seen:
                seen += [change.state for change in (await watch.read()).instances if change.spec.name == name]
            await agent.stop(name)
            while agent_pb2.INSTANCE_STATE_GONE not in seen:
                seen += [change.state for change in (await watch.read()).instances if change.spec.name == name]
        assert seen[0] == agent_pb2.INSTANCE_STATE_STARTING
        assert seen[-2:] == [agent_pb2.INSTANCE_STATE_STOPPING, agent_pb2.INSTANCE_STATE_GONE]
    finally:
        watch.cancel()


async def test_the_number_of_instances_is_bounded(tmp_path: Path) -> None:
    async with run_agent(tmp_path, limit=1) as agent:
        await agent.start("price")
        assert await refusal(agent.start("check")) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "INSTANCE_LIMIT")


async def test_a_stop_of_the_agent_ends_all_instances_within_three_seconds(tmp_path: Path) -> None:
    async with run_agent(tmp_path) as agent:
        for replica in range(4):
            await agent.up(await agent.start("stubborn", replica=replica))
        began = time.monotonic()
        await agent.process.end(4)
        assert time.monotonic() - began < 3.5
        assert processes_with("HEADRACE_AGENT", str(tmp_path)) == []
        assert agent.process.exit_status == 0


async def test_kill_of_the_agent_leaves_no_orphan(tmp_path: Path) -> None:
    async with run_agent(tmp_path) as agent:
        for step in ("price", "stubborn"):
            await agent.up(await agent.start(step))
        agent.process.signal(signal.SIGKILL)
        await eventually(lambda: processes_with("HEADRACE_AGENT", str(tmp_path)) == [], within_s=2)


async def test_the_next_agent_ends_what_escaped_the_killed_one(tmp_path: Path) -> None:
    async with run_agent(tmp_path) as agent:
        await agent.up(await agent.start("orphans"))
        agent.process.signal(signal.SIGKILL)
        await agent.process.wait()
    (tmp_path / "old.sock").touch()
    async with run_agent(tmp_path):
        assert processes_with("HEADRACE_AGENT", str(tmp_path)) == []
        assert not (tmp_path / "old.sock").exists()


async def refusal(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call  # type: ignore[misc]
    status = rpc_status.from_call(raised.value)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return raised.value.code(), info.reason


async def test_a_silent_watch_says_that_it_lives(agent: Agent) -> None:
    watch = agent.stub.WatchInstances(agent_pb2.WatchInstancesRequest())
    try:
        async with asyncio.timeout(8):
            assert [len((await watch.read()).instances) for _ in range(2)] == [0, 0]
    finally:
        watch.cancel()
