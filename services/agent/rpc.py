"""AgentService over the instance table: conversion only."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from headrace.api.agent.v1 import agent_pb2, agent_pb2_grpc
from headrace.model.errors import InvalidInput
from services.agent.domain.instances import InstanceSpec, InstanceView
from services.agent.instance_table import InstanceTable
from services.agent.trials import Trials

DEFAULT_GRACE_MS = 3_000
LONGEST_GRACE_MS = 60_000


class AgentRpc(agent_pb2_grpc.AgentServiceServicer):
    def __init__(self, table: InstanceTable, trials: Trials) -> None:
        self._table = table
        self._trials = trials

    async def StartInstance(  # type: ignore[override]
        self, request: agent_pb2.StartInstanceRequest, context: Any
    ) -> agent_pb2.StartInstanceResponse:
        spec = request.spec
        view = await self._table.start(
            InstanceSpec(
                name=spec.name,
                workspace=spec.workspace,
                flow=spec.flow,
                deployment=spec.deployment,
                step=spec.step,
                replica=spec.replica,
                plan_digest=spec.plan_digest,
            ),
            request.generation,
        )
        return agent_pb2.StartInstanceResponse(instance=instance_of(view))

    async def StopInstance(  # type: ignore[override]
        self, request: agent_pb2.StopInstanceRequest, context: Any
    ) -> agent_pb2.StopInstanceResponse:
        if not request.name:
            raise InvalidInput.at("name", request.name, "is missing", next_step="Give an instance's name")
        if request.grace_ms > LONGEST_GRACE_MS:
            raise InvalidInput.at("grace_ms", request.grace_ms, f"is above {LONGEST_GRACE_MS}")
        await self._table.stop(request.name, request.generation, (request.grace_ms or DEFAULT_GRACE_MS) / 1000)
        return agent_pb2.StopInstanceResponse()

    async def ListInstances(  # type: ignore[override]
        self, request: agent_pb2.ListInstancesRequest, context: Any
    ) -> agent_pb2.ListInstancesResponse:
        return agent_pb2.ListInstancesResponse(instances=[instance_of(view) for view in self._table.all()])

    async def RunTrial(  # type: ignore[override]
        self, request: agent_pb2.RunTrialRequest, context: Any
    ) -> agent_pb2.RunTrialResponse:
        return agent_pb2.RunTrialResponse(result=await self._trials.run(request.trial, request.workspace))

    async def WatchInstances(  # type: ignore[override]
        self, request: agent_pb2.WatchInstancesRequest, context: Any
    ) -> AsyncIterator[agent_pb2.WatchInstancesResponse]:
        async with contextlib.aclosing(self._table.watch()) as changes:  # type: ignore[type-var]
            async for views in changes:
                yield agent_pb2.WatchInstancesResponse(instances=[instance_of(view) for view in views])


def instance_of(view: InstanceView) -> agent_pb2.Instance:
    """The message for a view."""
    spec = view.spec
    instance = agent_pb2.Instance(
        spec=agent_pb2.InstanceSpec(
            name=spec.name,
            workspace=spec.workspace,
            flow=spec.flow,
            deployment=spec.deployment,
            step=spec.step,
            replica=spec.replica,
            plan_digest=spec.plan_digest,
        ),
        state=agent_pb2.InstanceState.Value(f"INSTANCE_STATE_{view.state}"),
        address=view.address,
        pid=view.pid,
        generation=view.generation,
        starts=view.starts,
        last_exit=view.last_exit,
    )
    if view.started_at_unix_s:
        instance.start_time.FromNanoseconds(int(view.started_at_unix_s * 1e9))
    return instance
