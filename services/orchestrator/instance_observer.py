"""What agent and sidecars report, kept current by their watch streams, and the calls to them.

One stream to the agent, one to each instance that is up. A report that is lost costs latency only: streams
are opened again with back-off and begin with the present state.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import grpc

from headrace.api.agent.v1 import agent_pb2, agent_pb2_grpc
from headrace.api.sidecar.v1 import sidecar_pb2, sidecar_pb2_grpc, trial_pb2
from headrace.edge.grpc_channel import open_channel
from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from services.orchestrator.domain.actions import CONCLUDE, GIVE_WAY, CallInstance
from services.orchestrator.domain.snapshot import InstanceView, StatusView
from services.orchestrator.instance_views import instance_view, status_view

log = get_logger(__name__)

CALL_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 20.0
# How often counters alone make a flow be looked at: they decide nothing, but a flow that works is looked at sometimes.
COUNTERS_LOOK_S = 60.0
# A watch sends something every 10 s; silence for two and a half times that means that the stream is dead.
SILENCE_LIMIT_S = 25.0
RECONNECT_S = 0.05
LONGEST_RECONNECT_S = 2.0


@dataclass
class _Watch:
    address: str
    channel: grpc.aio.Channel
    task: asyncio.Task[None]


class InstanceObserver:
    """Owns the channels to agent and sidecars and the tasks that watch them; `stop` ends and awaits them."""

    def __init__(
        self,
        agent_address: str,
        workspace: str,
        on_change: Callable[[str], None],
        *,
        channel_to: Callable[[str], grpc.aio.Channel] = open_channel,
        on_work: Callable[[str], None] = lambda flow: None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change` gets flows of which something is told that decides, `on_work` now and then those that only
        work. `guard` is called before each call that changes something, and raises where that may not be."""
        self._guard = guard
        self._on_work = on_work
        self._worked: dict[str, float] = {}
        self._workspace = workspace
        self._on_change = on_change
        self._channel_to = channel_to
        self._agent_channel = channel_to(agent_address)
        self._agent = agent_pb2_grpc.AgentServiceStub(self._agent_channel)
        self._agent_task: asyncio.Task[None] | None = None
        self._watches: dict[str, _Watch] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.agent_known = False
        self.instances: dict[str, agent_pb2.Instance] = {}
        self.statuses: dict[str, sidecar_pb2.InstanceStatus] = {}

    def start(self) -> None:
        self._agent_task = asyncio.create_task(self._watch_agent(), name="watch agent")

    async def pause(self) -> None:
        """Ends all watches and forgets what they said; `start` begins anew."""
        tasks = [watch.task for watch in self._watches.values()] + list(self._ending)
        if self._agent_task is not None:
            tasks.append(self._agent_task)
        await end_tasks(tasks)
        await asyncio.gather(*(watch.channel.close() for watch in self._watches.values()))
        self._agent_task, self.agent_known = None, False
        for known in (self._watches, self.instances, self.statuses, self._worked):
            known.clear()

    async def stop(self) -> None:
        await self.pause()
        await self._agent_channel.close()

    # What is known of one flow.

    def instances_of(self, flow: str) -> dict[str, agent_pb2.Instance]:
        return {
            name: instance
            for name, instance in self.instances.items()
            if instance.spec.flow == flow and instance.spec.workspace == self._workspace
        }

    def views_of(self, flow: str) -> tuple[Mapping[str, InstanceView], Mapping[str, StatusView]]:
        """Views for the planner. A status counts only while its instance is up."""
        instances = {name: instance_view(instance) for name, instance in self.instances_of(flow).items()}
        statuses = {
            name: status_view(self.statuses[name])
            for name, view in instances.items()
            if view.up and name in self.statuses
        }
        return instances, statuses

    def flows(self) -> set[str]:
        """Flows of which the agent has instances."""
        return {item.spec.flow for item in self.instances.values() if item.spec.workspace == self._workspace}

    # Calls.

    async def start_instance(self, spec: agent_pb2.InstanceSpec, generation: int) -> None:
        self._guard()
        request = agent_pb2.StartInstanceRequest(spec=spec, generation=generation)
        answer = await self._agent.StartInstance(request, timeout=CALL_TIMEOUT_S)
        known = self.instances.get(spec.name)
        if known is None or known.generation < answer.instance.generation:
            self._take([answer.instance])

    async def stop_instance(self, name: str, generation: int) -> None:
        self._guard()
        request = agent_pb2.StopInstanceRequest(name=name, generation=generation)
        await self._agent.StopInstance(request, timeout=STOP_TIMEOUT_S)
        self._remove(name)

    async def call(self, action: CallInstance) -> None:
        """One lifecycle call; its answer is taken as a report."""
        self._guard()
        watch = self._watches.get(action.name)
        if watch is None:
            return
        stub = sidecar_pb2_grpc.LifecycleServiceStub(watch.channel)
        generation = action.generation
        slots = [sidecar_pb2.SlotLease(slot=slot, generation=since) for slot, since in action.slots]
        if action.verb == "Prepare":
            status = (
                await stub.Prepare(sidecar_pb2.PrepareRequest(generation=generation), timeout=CALL_TIMEOUT_S)
            ).status
        elif action.verb == "Activate":
            status = (
                await stub.Activate(
                    sidecar_pb2.ActivateRequest(generation=generation, slots=slots, resumed=action.resumed),
                    timeout=CALL_TIMEOUT_S,
                )
            ).status
        elif action.verb == CONCLUDE:
            conclude = sidecar_pb2.ConcludeRequest(generation=generation)
            status = (await stub.Conclude(conclude, timeout=CALL_TIMEOUT_S)).status
        else:
            drain = sidecar_pb2.DrainRequest(
                generation=generation, give_way=action.verb == GIVE_WAY, slots=slots, resumed=action.resumed
            )
            status = (await stub.Drain(drain, timeout=CALL_TIMEOUT_S)).status
        self._report(action.name, status)

    async def refresh_credential(self, name: str, version: int, generation: int, limit_s: float) -> None:
        """Hands a version of its credential to an instance; AioRpcError where it is refused."""
        self._guard()
        watch = self._watches.get(name)
        if watch is None:
            return  # it starts with what the state says
        request = sidecar_pb2.RefreshCredentialRequest(generation=generation, version=version)
        await sidecar_pb2_grpc.LifecycleServiceStub(watch.channel).RefreshCredential(request, timeout=limit_s)

    async def run_trial(self, trial: trial_pb2.Trial, limit_s: float) -> trial_pb2.TrialResult:
        """One trial on the agent's machine; AioRpcError where it is refused or fails."""
        request = agent_pb2.RunTrialRequest(trial=trial, workspace=self._workspace)
        return (await self._agent.RunTrial(request, timeout=limit_s)).result

    async def agent_answers(self, limit_s: float) -> bool:
        """Whether the agent answers a question now: a watch does not notice one that is stopped."""
        try:
            await self._agent.ListInstances(agent_pb2.ListInstancesRequest(), timeout=limit_s)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def examine(self, name: str, *, stacks: bool, limit_s: float) -> sidecar_pb2.ExamineResponse | None:
        """What an instance works on and waits for; None where it does not answer in time."""
        watch = self._watches.get(name)
        if watch is None:
            return None
        stub = sidecar_pb2_grpc.LifecycleServiceStub(watch.channel)
        try:
            return await stub.Examine(sidecar_pb2.ExamineRequest(stacks=stacks), timeout=limit_s)
        except grpc.aio.AioRpcError as error:
            log.debug("an instance was not examined", instance=name, code=error.code().name)
            return None

    # Watching.

    async def _watch_agent(self) -> None:
        delay = RECONNECT_S
        while True:
            try:
                stream = self._agent.WatchInstances(agent_pb2.WatchInstancesRequest())
                try:
                    first = True
                    async for message in stream:
                        delay = RECONNECT_S
                        if first:
                            self._replace(list(message.instances))
                            first = False
                        else:
                            self._take(list(message.instances))
                finally:
                    stream.cancel()
            except grpc.aio.AioRpcError as error:
                log.debug("agent watch ended", code=error.code().name)
            if self.agent_known:
                log.warning("agent does not answer")
                self.agent_known = False
                self._wake_all()
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_RECONNECT_S)

    def _replace(self, instances: list[agent_pb2.Instance]) -> None:
        present = {instance.spec.name for instance in instances}
        for name in [name for name in self.instances if name not in present]:
            self._remove(name)
        self.agent_known = True
        self._take(instances)
        self._wake_all()

    def _take(self, instances: list[agent_pb2.Instance]) -> None:
        for instance in instances:
            name = instance.spec.name
            if instance.state == agent_pb2.INSTANCE_STATE_GONE:
                self._remove(name)
                continue
            known = self.instances.get(name)
            self.instances[name] = instance
            restarted = known is not None and known.pid != instance.pid
            if instance.state == agent_pb2.INSTANCE_STATE_UP and instance.address:
                self._follow(name, instance.address, afresh=restarted)
            else:
                self._unfollow(name)
            self._on_change(instance.spec.flow)

    def _remove(self, name: str) -> None:
        instance = self.instances.pop(name, None)
        self._unfollow(name)
        if instance is not None:
            self._worked.pop(instance.spec.flow, None)
            self._on_change(instance.spec.flow)

    def _wake_all(self) -> None:
        for flow in self.flows():
            self._on_change(flow)
        self._on_change("")

    def _follow(self, name: str, address: str, *, afresh: bool) -> None:
        watch = self._watches.get(name)
        if watch is not None:
            if watch.address == address and not afresh:
                return
            self._unfollow(name)
        channel = self._channel_to(address)
        task = asyncio.create_task(self._watch_instance(name, channel), name=f"watch {name}")
        self._watches[name] = _Watch(address, channel, task)

    def _unfollow(self, name: str) -> None:
        self.statuses.pop(name, None)
        watch = self._watches.pop(name, None)
        if watch is None:
            return
        watch.task.cancel()
        ending = asyncio.create_task(_close(watch), name=f"close {name}")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _watch_instance(self, name: str, channel: grpc.aio.Channel) -> None:
        stub = sidecar_pb2_grpc.LifecycleServiceStub(channel)
        delay = RECONNECT_S
        while True:
            try:
                stream = stub.WatchStatus(sidecar_pb2.WatchStatusRequest())
                try:
                    while True:
                        async with asyncio.timeout(SILENCE_LIMIT_S):
                            message = await stream.read()
                        if not isinstance(message, sidecar_pb2.WatchStatusResponse):
                            break  # the end of the stream
                        delay = RECONNECT_S
                        self._report(name, message.status)
                finally:
                    stream.cancel()
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                log.debug("status watch ended", instance=name, error=repr(error)[:200])
            self.statuses.pop(name, None)
            self._wake(name)
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_RECONNECT_S)

    def _report(self, name: str, status: sidecar_pb2.InstanceStatus) -> None:
        watch, before = self._watches.get(name), self.statuses.get(name)
        if watch is None or before == status:  # a watch also repeats itself
            return
        self.statuses[name] = status
        if before is None or status_view(before).deciding != status_view(status).deciding:
            self._wake(name)
        else:
            self._note_work(name)

    def _note_work(self, name: str) -> None:
        instance, now = self.instances.get(name), asyncio.get_running_loop().time()
        if instance is not None and now - self._worked.get(instance.spec.flow, 0.0) >= COUNTERS_LOOK_S:
            self._worked[instance.spec.flow] = now
            self._on_work(instance.spec.flow)

    def _wake(self, name: str) -> None:
        instance = self.instances.get(name)
        if instance is not None:
            self._on_change(instance.spec.flow)


async def _close(watch: _Watch) -> None:
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await watch.task
    await watch.channel.close()
