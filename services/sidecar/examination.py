"""What an instance works on and waits for at this moment: read from what it holds, when somebody asks `why`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.edge.nats_echo import round_trip_ms
from headrace.edge.process_table import state_of
from headrace.model import subjects
from services.sidecar.domain.lifecycle import Stage
from services.sidecar.held_input import HeldInput, Phase
from services.sidecar.lifecycle_rpc import status_message

if TYPE_CHECKING:
    from services.sidecar.component_process import ComponentProcess
    from services.sidecar.instance import Instance
    from services.sidecar.outbox import Blocked

MAX_ITEMS = 5
MAX_TEXT = 500
BROKER_LIMIT_S = 0.5
STACKS_LIMIT_S = 1.0
# A call that runs for so long is worth a stack.
LONG_CALL_S = 1.0


class Examination:
    """`connection` is the control plane's connection to the broker, `link` the data plane's."""

    def __init__(self, name: str, instance: Instance, connection: Any, link: Any) -> None:
        self._name, self._instance, self._connection, self._link = name, instance, connection, link

    async def examine(self, *, stacks: bool) -> sidecar_pb2.ExamineResponse:
        """At most a second and a half, whatever broker and component do."""
        broker, found = await asyncio.gather(self._broker(), self._stacks() if stacks else _nothing())
        answer = sidecar_pb2.ExamineResponse(status=status_message(self._name, self._instance))
        self._tell_held(answer)
        self._tell_component(answer)
        answer.broker_connected = bool(self._connection.is_connected and self._link.up)
        if broker is not None:
            answer.broker_ms = broker
        if found is not None:
            answer.stacks.CopyFrom(found)
        answer.now.FromNanoseconds(time.time_ns())
        return answer

    def _tell_held(self, answer: sidecar_pb2.ExamineResponse) -> None:
        plane = self._instance.plane
        if plane is None:
            return
        now, wall_ns = time.monotonic(), time.time_ns()
        inputs = plane.inputs()
        for held in inputs:
            answer.held[held.phase.value] += 1
        running = sorted((held for held in inputs if held.phase is Phase.RUNNING), key=lambda held: held.began_at)
        retrying = sorted((held for held in inputs if held.phase is Phase.RETRYING), key=lambda held: held.due_at)
        suspects = sorted((held for held in inputs if held.crashes), key=lambda held: -held.crashes)
        for target, found in ((answer.running, running), (answer.retrying, retrying), (answer.suspects, suspects)):
            target.extend(_held_message(held, now) for held in found[:MAX_ITEMS])
        answer.edges.extend(_edge(blocked) for blocked in plane.blocked()[:MAX_ITEMS])
        answer.paced, answer.given_up = plane.loop.paced, plane.loop.given_up
        answer.prefetch = plane.prefetch
        if plane.last_input_at:
            answer.last_input_time.FromNanoseconds(wall_ns - int((now - plane.last_input_at) * 1e9))
        if plane.loop.last_error is not None:
            problem, at_ns = plane.loop.last_error
            answer.last_error.code, answer.last_error.message = problem.code, problem.message[:MAX_TEXT]
            answer.last_error.time.FromNanoseconds(at_ns)

    def _tell_component(self, answer: sidecar_pb2.ExamineResponse) -> None:
        supervisor = self._instance.supervisor
        pid = supervisor.pid if supervisor is not None else 0
        state = state_of(pid) if pid else ""
        answer.component_process = "gone" if state in ("", "Z", "X") else "stopped" if state in "Tt" else "running"

    async def _broker(self) -> float | None:
        connection = self._connection
        if not connection.is_connected:
            return None
        try:
            return await round_trip_ms(connection, BROKER_LIMIT_S)
        except Exception:  # whatever its client says: it did not answer
            return None

    async def _stacks(self) -> sidecar_pb2.ComponentStacks | None:
        process = self._component_worth_a_look()
        if process is None:
            return None
        try:
            async with asyncio.timeout(STACKS_LIMIT_S):
                return await process.stacks()
        except (TimeoutError, ConnectionError):
            return sidecar_pb2.ComponentStacks(problem="it did not tell in time")

    def _component_worth_a_look(self) -> ComponentProcess | None:
        """Asked only where it may be what holds things up: nothing of a healthy component is disturbed."""
        instance, supervisor = self._instance, self._instance.supervisor
        process = supervisor.process if supervisor is not None else None
        if process is None or not process.running:
            return None
        if instance.status.stage is Stage.INIT:
            return process
        plane, now = instance.plane, time.monotonic()
        if plane is None:
            return None
        long_call = any(held.phase is Phase.RUNNING and now - held.began_at >= LONG_CALL_S for held in plane.inputs())
        return process if long_call or plane.loop.component_problem else None


async def _nothing() -> None:
    return None


def _held_message(held: HeldInput, now: float) -> sidecar_pb2.HeldMessage:
    message = sidecar_pb2.HeldMessage(
        message_id=held.message_id,
        execution_id=held.envelope.execution_id,
        attempt=held.attempt,
        crashes=held.crashes,
        call=held.call,
        rebound=held.phase is Phase.RETRYING and held.rebound is not None,
    )
    message.stored_time.FromNanoseconds(held.delivery.stored_at_unix_ns)
    if held.phase is Phase.RUNNING:
        message.runs_for.FromNanoseconds(max(0, int((now - held.began_at) * 1e9)))
    if held.phase is Phase.RETRYING:
        message.due_in.FromNanoseconds(max(0, int((held.due_at - now) * 1e9)))
    if held.attempts:
        last = held.attempts[-1]
        message.error.code, message.error.message = last.code, last.message[:MAX_TEXT]
    return message


def _edge(blocked: Blocked) -> sidecar_pb2.BlockedEdge:
    try:
        receiver = subjects.parse_data_subject(blocked.subject).step
    except ValueError:
        receiver = ""
    message = sidecar_pb2.BlockedEdge(receiver=receiver, waiting=blocked.waiting, why=blocked.why)
    message.blocked_for.FromNanoseconds(int(blocked.for_s * 1e9))
    return message
