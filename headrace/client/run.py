"""Brings a flow file to a running flow: apply, publish, and start, switch or restart, whichever it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from headrace.api.flow.v1 import flow_pb2
from headrace.client.apply import AppliedComponent, AppliedFlow, ApplyCalls
from headrace.client.operations import Progress
from headrace.client.rollout_calls import RolloutOptions
from headrace.model.errors import WrongState

if TYPE_CHECKING:
    from headrace.wire.flow_file import FlowFile

STARTED = "started"
SWITCHED = "switched"
UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class RanFlow:
    """What `run` did: `action` is `started`, `switched` (a running flow got a new deployment) or `unchanged`;
    `status` is the flow as it runs now, `result` that of the operation, None where there was none to do."""

    applied: AppliedFlow
    action: str
    result: flow_pb2.FlowOperationResult | None
    status: flow_pb2.FlowStatus


class RunCalls(ApplyCalls):
    """One call from a file to an answer."""

    async def run(
        self,
        file: FlowFile | Path | str,
        *,
        pushed: Callable[[AppliedComponent], None] | None = None,
        progress: Progress | None = None,
        **options: Unpack[RolloutOptions],
    ) -> RanFlow:
        """`apply`, then what is left to do until the flow runs exactly that file: publish its draft, start it where
        it is stopped, restart it where only its components are newer. Repeating it changes nothing.

        `options` are those of `publish`. Errors are those of the verbs; what was done before one stays.
        """
        applied = await self.apply(file, pushed=pushed)
        name = applied.flow.name.removeprefix("flows/")
        result: flow_pb2.FlowOperationResult | None = None
        if applied.flow.HasField("draft"):
            try:
                result = await self.publish(name, progress=progress, **options)
            except WrongState as error:
                if error.reason != "UNCHANGED":
                    raise
        status = await self.get_status(name)
        if status.state == flow_pb2.FLOW_STATE_STOPPED:
            result = await self.start(name, progress=progress)
            return RanFlow(applied, STARTED, result, await self.get_status(name))
        if result is not None:
            return RanFlow(applied, SWITCHED, result, await self.get_status(name))
        if not runs_newest(status, applied.components):
            result = await self.restart(name, progress=progress, **options)
            return RanFlow(applied, SWITCHED, result, await self.get_status(name))
        return RanFlow(applied, UNCHANGED, None, status)


def runs_newest(status: flow_pb2.FlowStatus, components: tuple[AppliedComponent, ...]) -> bool:
    """Whether every step whose component is among these runs its very digest."""
    newest = {item.component: item.digest for item in components}
    return all(newest.get(step.pin.component, step.pin.digest) == step.pin.digest for step in status.steps)
