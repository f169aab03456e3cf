"""The part of FlowService about versions, drafts and deployments: conversion only, verbs are in `rollouts`."""

from __future__ import annotations

from typing import Any

from headrace.api.flow.v1 import flow_pb2
from headrace.edge.request_book import RequestBook, Ticket
from headrace.model.errors import InvalidInput
from headrace.model.names import parse_resource
from headrace.wire.flow import flow_spec_from_proto, flow_type_from_proto, seconds_from_duration
from services.orchestrator.domain.documents import Rollout, Strategy
from services.orchestrator.domain.draft_mask import check_mask
from services.orchestrator.flow_messages import flow_message, operation_message
from services.orchestrator.flow_service import START_LIMIT_S, limit_of
from services.orchestrator.rollouts import Rollouts
from services.orchestrator.verb_call import verb_call

_STRATEGIES = {
    flow_pb2.STRATEGY_UNSPECIFIED: Strategy.WARM_SWITCH,
    flow_pb2.STRATEGY_WARM_SWITCH: Strategy.WARM_SWITCH,
    flow_pb2.STRATEGY_RESTART: Strategy.RESTART,
}


class RolloutRpc:
    """Mixed into the servicer of FlowService."""

    _rollouts: Rollouts
    _requests: RequestBook

    async def UpdateDraft(self, request: flow_pb2.UpdateDraftRequest, context: Any) -> flow_pb2.Flow:
        flow = flow_of(request.name)
        if request.from_version and (request.HasField("spec") or request.update_mask.paths):
            raise InvalidInput.at("from_version", request.from_version, "is given together with a spec")
        fields = check_mask(request.update_mask.paths)

        async def update(ticket: Ticket) -> flow_pb2.Flow:
            checks, mark = request.validate_only, ticket.mark
            if request.from_version:
                document = await self._rollouts.draft_from(
                    flow, request.from_version, request.etag, validate_only=checks, mark=mark
                )
            else:
                spec = flow_spec_from_proto(request.spec)
                document = await self._rollouts.flows.update_draft(
                    flow, spec, request.etag, validate_only=checks, fields=fields, mark=mark
                )
            return flow_message(document)

        return await self._requests.once("FlowService/UpdateDraft", request, flow_pb2.Flow, update)

    async def UpgradeDraft(self, request: flow_pb2.UpgradeDraftRequest, context: Any) -> flow_pb2.UpgradeDraftResponse:
        flow, components = flow_of(request.name), list(request.components)

        async def upgrade(ticket: Ticket) -> flow_pb2.UpgradeDraftResponse:
            document, changes = await self._rollouts.upgrade_draft(
                flow, components, request.etag, validate_only=request.validate_only, mark=ticket.mark
            )
            return flow_pb2.UpgradeDraftResponse(flow=flow_message(document), changes=changes)

        kind = flow_pb2.UpgradeDraftResponse
        return await self._requests.once("FlowService/UpgradeDraft", request, kind, upgrade)

    async def SetFlowType(self, request: flow_pb2.SetFlowTypeRequest, context: Any) -> flow_pb2.Flow:
        flow, flow_type = flow_of(request.name), flow_type_from_proto(request.type)

        async def change(ticket: Ticket) -> flow_pb2.Flow:
            document = await self._rollouts.set_type(
                flow, flow_type, request.etag, validate_only=request.validate_only, mark=ticket.mark
            )
            return flow_message(document)

        return await self._requests.once("FlowService/SetFlowType", request, flow_pb2.Flow, change)

    async def PublishFlow(self, request: flow_pb2.PublishFlowRequest, context: Any) -> Any:
        flow, rollout = flow_of(request.name), _rollout(request)
        return operation_message(await self._rollouts.publish(flow, rollout, verb_call(request, context)))

    async def RestartFlow(self, request: flow_pb2.RestartFlowRequest, context: Any) -> Any:
        flow, rollout = flow_of(request.name), _rollout(request)
        return operation_message(await self._rollouts.restart(flow, rollout, verb_call(request, context)))

    async def RollbackFlow(self, request: flow_pb2.RollbackFlowRequest, context: Any) -> Any:
        flow, rollout = flow_of(request.name), _rollout(request)
        call = verb_call(request, context)
        return operation_message(await self._rollouts.rollback(flow, request.version, rollout, call))

    async def DeleteVersion(
        self, request: flow_pb2.DeleteVersionRequest, context: Any
    ) -> flow_pb2.DeleteVersionResponse:
        flow, number = parse_resource("name", request.name, "flows", "versions")

        async def delete(ticket: Ticket) -> flow_pb2.DeleteVersionResponse:
            await self._rollouts.delete_version(flow, int(number), request.etag, ticket.mark)
            return flow_pb2.DeleteVersionResponse()

        kind = flow_pb2.DeleteVersionResponse
        return await self._requests.once("FlowService/DeleteVersion", request, kind, delete)


def flow_of(name: str, field: str = "name") -> str:
    """`orders` of `flows/orders`."""
    return parse_resource(field, name, "flows")[0]


def _rollout(
    request: flow_pb2.PublishFlowRequest | flow_pb2.RestartFlowRequest | flow_pb2.RollbackFlowRequest,
) -> Rollout:
    strategy = _STRATEGIES.get(request.strategy)
    if strategy is None:
        raise InvalidInput.at("strategy", request.strategy, "is not a strategy; use WARM_SWITCH or RESTART")
    if request.strict_order and strategy == Strategy.RESTART:
        raise InvalidInput.at(
            "strict_order", True, "is for WARM_SWITCH: with RESTART the new deployment begins after the old one anyway"
        )
    limit_s = limit_of("timeout", seconds_from_duration(request.timeout), START_LIMIT_S)
    return Rollout(strategy, strict_order=request.strict_order, limit_s=limit_s)
