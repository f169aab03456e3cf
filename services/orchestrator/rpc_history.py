"""FlowService's ListHistory: conversion between messages and the history's stream."""

from __future__ import annotations

from typing import Any

from headrace.api.flow.v1 import flow_pb2
from headrace.model.pages import Page, bounded
from services.orchestrator.domain.history_entry import HistoryEntry
from services.orchestrator.flow_messages import pin_message
from services.orchestrator.history_log import HistoryReader
from services.orchestrator.rpc_rollouts import flow_of

DEFAULT_PAGE = 50
MAX_PAGE = 500


class HistoryRpc:
    """Part of FlowRpc."""

    _history: HistoryReader

    async def ListHistory(self, request: flow_pb2.ListHistoryRequest, context: Any) -> flow_pb2.ListHistoryResponse:
        """Newest first; also of flows that were deleted."""
        flow = flow_of(request.parent, "parent") if request.parent else ""
        kind = f"the history of {flow or 'all flows'}"
        page = Page.asked(kind, request.page_size, request.page_token, default=DEFAULT_PAGE, most=MAX_PAGE)
        found = await self._history.read(flow, page)
        entries = bounded(_message(entry) for _, entry in found[: page.size])
        token = page.token(found[len(entries) - 1][0]) if len(entries) < len(found) else ""
        return flow_pb2.ListHistoryResponse(entries=entries, next_page_token=token)


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
