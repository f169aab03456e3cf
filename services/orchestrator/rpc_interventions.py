"""The part of FlowService about flows that run or drain: conversion only, verbs are in `interventions`."""

from __future__ import annotations

from typing import Any

from headrace.api.flow.v1 import flow_pb2
from headrace.model.errors import InvalidInput
from headrace.model.names import is_number, parse_resource
from headrace.wire.flow import seconds_from_duration
from services.orchestrator.domain import drain_choice
from services.orchestrator.flow_messages import operation_message
from services.orchestrator.interventions import Interventions
from services.orchestrator.rpc_rollouts import flow_of
from services.orchestrator.verb_call import verb_call

_CHOICES = {
    flow_pb2.DRAIN_CHOICE_WAIT: drain_choice.WAIT,
    flow_pb2.DRAIN_CHOICE_DEAD_LETTER: drain_choice.DEAD_LETTER,
    flow_pb2.DRAIN_CHOICE_MOVE: drain_choice.MOVE,
}


class InterventionRpc:
    """Mixed into the servicer of FlowService."""

    _interventions: Interventions

    async def SuspendFlow(self, request: flow_pb2.SuspendFlowRequest, context: Any) -> Any:
        operation = await self._interventions.suspend(
            flow_of(request.name),
            seconds_from_duration(request.timeout),
            seconds_from_duration(request.max_time),
            request.max_messages,
            verb_call(request, context),
        )
        return operation_message(operation)

    async def ResumeFlow(self, request: flow_pb2.ResumeFlowRequest, context: Any) -> Any:
        timeout_s = seconds_from_duration(request.timeout)
        call = verb_call(request, context)
        return operation_message(await self._interventions.resume(flow_of(request.name), timeout_s, call))

    async def ScaleStep(self, request: flow_pb2.ScaleStepRequest, context: Any) -> Any:
        operation = await self._interventions.scale(
            flow_of(request.name),
            request.step,
            request.replicas,
            seconds_from_duration(request.timeout),
            verb_call(request, context),
        )
        return operation_message(operation)

    async def ResolveDrain(self, request: flow_pb2.ResolveDrainRequest, context: Any) -> Any:
        flow, number = parse_resource("name", request.name, "flows", "deployments")
        choice = _CHOICES.get(request.choice)
        if choice is None:
            raise InvalidInput.at("choice", request.choice, "is not a choice; use WAIT, DEAD_LETTER or MOVE")
        operation = await self._interventions.resolve_drain(
            flow,
            _number(number),
            choice,
            seconds_from_duration(request.timeout),
            verb_call(request, context),
        )
        return operation_message(operation)


def _number(text: str) -> int:
    if not is_number(text):
        raise InvalidInput.at("name", text, "is not a deployment's number", next_step="flows/{flow}/deployments/{n}")
    return int(text)
