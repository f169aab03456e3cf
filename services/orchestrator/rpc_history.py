"""FlowService's ListHistory: conversion between messages and the history's stream."""

from __future__ import annotations

from typing import Any

from headrace.api.flow.v1 import flow_pb2
from services.orchestrator.domain.history_entry import HistoryEntry
from services.orchestrator.flow_messages import pin_message
from services.orchestrator.history_log import HistoryReader
from services.orchestrator.rpc_rollouts import flow_of


class HistoryRpc:
    """Part of FlowRpc."""

    _history: HistoryReader

    async def ListHistory(self, request: flow_pb2.ListHistoryRequest, context: Any) -> flow_pb2.ListHistoryResponse:
        """Newest first; also of flows that were deleted."""
        flow = flow_of(request.parent, "parent") if request.parent else ""
        entries, token = await self._history.page(flow, request.page_size, request.page_token)
        return flow_pb2.ListHistoryResponse(entries=[_message(entry) for entry in entries], next_page_token=token)


def _message(entry: HistoryEntry) -> flow_pb2.HistoryEntry:
    message = flow_pb2.HistoryEntry(
        id=entry.id,
        who=entry.who,
        flow=f"flows/{entry.flow}" if entry.flow else "",
        what=entry.what,
        version=entry.version,
        deployment=entry.deployment,
        pins=[pin_message(step, pin) for step, pin in entry.pins.items()],
        detail=entry.detail,
        operation=entry.operation,
    )
    message.time.FromNanoseconds(int(entry.at * 1e9))
    return message
