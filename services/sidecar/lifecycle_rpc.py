"""LifecycleService: what the orchestrator asks of this instance, and its status."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, Protocol

from headrace import compiled
from headrace.api.sidecar.v1 import sidecar_pb2, sidecar_pb2_grpc
from headrace.model.errors import WrongState
from services.sidecar.domain.lifecycle import Stage
from services.sidecar.instance import Instance
from services.sidecar.slot import SlotLease
from services.sidecar.stuck_inputs import StuckInput

SERVICE_NAME = "headrace.api.sidecar.v1.LifecycleService"
WATCH_PERIOD_S = 10.0
# How old the counters of an instance that works may be: a second where it just began or paused, twice as much each time
# while it goes on, up to the longest.
BUSY_PERIOD_S = 1.0
LONGEST_BUSY_PERIOD_S = 8.0
DEFAULT_GRACE_MS = 2_000
MAX_GRACE_MS = 60_000
MAX_ERROR = 500

_PROGRESS = {
    Stage.FETCHING: sidecar_pb2.PROGRESS_FETCHING,
    Stage.BUILDING: sidecar_pb2.PROGRESS_BUILDING,
    Stage.STARTING: sidecar_pb2.PROGRESS_STARTING,
    Stage.INIT: sidecar_pb2.PROGRESS_INIT,
    Stage.SELF_CHECK: sidecar_pb2.PROGRESS_SELF_CHECK,
    Stage.WARM: sidecar_pb2.PROGRESS_WARM,
    Stage.ACTIVE: sidecar_pb2.PROGRESS_ACTIVE,
    Stage.DRAINING: sidecar_pb2.PROGRESS_DRAINING,
    Stage.DRAINED: sidecar_pb2.PROGRESS_DRAINED,
}


def status_message(name: str, instance: Instance) -> sidecar_pb2.InstanceStatus:
    """The present status as the API tells it."""
    board = instance.status.board
    plane, supervisor = instance.plane, instance.supervisor
    cause, reason = board.cause, board.cause_reason
    if not cause and plane is not None and plane.problem:
        cause, reason = plane.problem, plane.problem_reason
    if plane is not None and plane.loop.component_problem:
        cause, reason = plane.loop.component_problem, "NOT_RESPONDING"
    status = sidecar_pb2.InstanceStatus(
        instance=name,
        state=sidecar_pb2.StepState.Value(f"STEP_STATE_{instance.status.state.value}"),
        progress=_PROGRESS.get(board.stage, sidecar_pb2.PROGRESS_UNSPECIFIED),
        generation=board.generation,
        revision=board.revision,
        in_flight=plane.held if plane is not None else 0,
        component_starts=supervisor.starts if supervisor is not None else 0,
        cause=cause,
        cause_reason=reason,
        last_log_lines=instance.logs.last_lines,
        stage_ms=board.stage_ms,
        sidecar_pid=os.getpid(),
        sidecar_code=compiled.code(),
        component_pid=supervisor.pid if supervisor is not None else 0,
        sdk=board.sdk,
        interpreter=board.interpreter,
        counters=_counters(instance),
        gave_way=instance.gave_way,
        resumed=instance.resumed,
        idle=instance.idle,
        concluded=instance.hooks is not None and instance.hooks.concluded,
        slots=[
            sidecar_pb2.SlotLease(slot=lease.slot, generation=lease.generation)
            for lease in (plane.leases if plane is not None else [])
        ],
    )
    if plane is not None and (stuck := plane.loop.stuck.present):
        status.stuck = plane.held_back
        status.stuck_message.CopyFrom(_stuck_message(stuck[0]))
    status.change_time.FromNanoseconds(board.changed_at_unix_ns)
    return status


def _counters(instance: Instance) -> dict[str, int]:
    counters = dict(instance.plane.counters) if instance.plane is not None else {}
    if instance.logs.dropped:
        counters["log_lines_dropped"] = instance.logs.dropped
    return counters


def _stuck_message(item: StuckInput) -> sidecar_pb2.StuckMessage:
    message = sidecar_pb2.StuckMessage(
        message_id=item.held.message_id,
        execution_id=item.held.envelope.execution_id,
        code=item.problem.code,
        error=item.problem.message[:MAX_ERROR],
        attempts=len(item.held.attempts),
    )
    message.since.FromNanoseconds(item.since_unix_ns)
    return message


def _leases(request: Any) -> list[SlotLease]:
    return [SlotLease(lease.slot, lease.generation) for lease in request.slots]


class Examine(Protocol):
    """`Examination.examine`."""

    async def __call__(self, *, stacks: bool) -> sidecar_pb2.ExamineResponse:
        """See there."""


class LifecycleRpc(sidecar_pb2_grpc.LifecycleServiceServicer):
    """Each call checks the generation, sets what is wanted, and answers the present status."""

    def __init__(self, name: str, instance: Instance, examine: Examine) -> None:
        self._name = name
        self._examine = examine
        self._instance = instance
        self._ending = False

    def end_streams(self) -> None:
        """Watches end with OK."""
        self._ending = True
        self._instance.status.touch()

    def _status(self) -> sidecar_pb2.InstanceStatus:
        return status_message(self._name, self._instance)

    async def Prepare(self, request: Any, context: Any) -> sidecar_pb2.PrepareResponse:
        self._instance.admit(request.generation)
        self._instance.prepare()
        await asyncio.sleep(0)  # lets the work begin, so that the answer shows it
        return sidecar_pb2.PrepareResponse(status=self._status())

    async def Activate(self, request: Any, context: Any) -> sidecar_pb2.ActivateResponse:
        self._instance.admit(request.generation)
        self._instance.own(_leases(request))
        self._instance.activate()
        self._note_resumed(request.resumed)
        return sidecar_pb2.ActivateResponse(status=self._status())

    async def Drain(self, request: Any, context: Any) -> sidecar_pb2.DrainResponse:
        self._instance.admit(request.generation)
        self._instance.own(_leases(request))
        if request.give_way:
            self._instance.give_way()
        else:
            self._instance.drain()
        self._note_resumed(request.resumed)
        return sidecar_pb2.DrainResponse(status=self._status())

    def _note_resumed(self, resumed: int) -> None:
        if resumed > self._instance.resumed:
            self._instance.resume(resumed)

    async def Conclude(self, request: Any, context: Any) -> sidecar_pb2.ConcludeResponse:
        self._instance.admit(request.generation)
        if self._instance.hooks is not None:
            self._instance.hooks.conclude()
        return sidecar_pb2.ConcludeResponse(status=self._status())

    async def Shutdown(self, request: Any, context: Any) -> sidecar_pb2.ShutdownResponse:
        self._instance.admit(request.generation)
        self._instance.shut_down(min(request.grace_ms or DEFAULT_GRACE_MS, MAX_GRACE_MS) / 1000)
        return sidecar_pb2.ShutdownResponse(status=self._status())

    async def GetStatus(self, request: Any, context: Any) -> sidecar_pb2.GetStatusResponse:
        return sidecar_pb2.GetStatusResponse(status=self._status())

    async def Examine(self, request: Any, context: Any) -> sidecar_pb2.ExamineResponse:
        return await self._examine(stacks=request.stacks)

    async def RefreshCredential(self, request: Any, context: Any) -> sidecar_pb2.RefreshCredentialResponse:
        self._instance.admit(request.generation)
        refresh = self._instance.refresh
        if refresh is None:
            raise WrongState(f"instance {self._name} has no credential", reason="NO_CREDENTIAL")
        accepted = await refresh.try_version(request.version)
        return sidecar_pb2.RefreshCredentialResponse(version=request.version, accepted=accepted)

    async def WatchStatus(self, request: Any, context: Any) -> AsyncIterator[sidecar_pb2.WatchStatusResponse]:
        board, counters, period_s = self._instance.status, dict[str, int](), BUSY_PERIOD_S
        while not self._ending:
            board.expect_work()
            version, status = board.version, self._status()
            before, counters = counters, dict(status.counters)
            yield sidecar_pb2.WatchStatusResponse(status=status)
            if counters == before:
                period_s = BUSY_PERIOD_S
                if not await board.changed_or_work(version, WATCH_PERIOD_S):
                    continue
            await self._while_it_works(version, counters, period_s)
            period_s = min(2 * period_s, LONGEST_BUSY_PERIOD_S)

    async def _while_it_works(self, version: int, told: dict[str, int], limit_s: float) -> None:
        """Returns at a change of state, when nothing was done for a second, or at the limit."""
        board, seen, left_s = self._instance.status, told, limit_s
        while left_s > 0 and board.version == version:
            await board.changed_since(version, BUSY_PERIOD_S)
            left_s -= BUSY_PERIOD_S
            before, seen = seen, _counters(self._instance)
            if seen == before:
                return
