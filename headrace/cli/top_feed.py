"""Keeps what `headrace top` shows up to date: two watches for each flow, of its status and of its hops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from headrace.cli.top_rows import FlowView
from headrace.model.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.client import AsyncClient

WINDOWS_S = (1, 10, 60)
MOST_FLOWS = 20
# How long a mesh may be away until the watches give up.
AWAY_S = 30.0


class TopFeed:
    """Use `run` as a task; `on_news` is called at each message. A single flow's end is the feed's; of several flows
    each ends alone."""

    def __init__(self, client: AsyncClient, flow: str, on_news: Callable[[], None]) -> None:
        """`flow` empty: all that are not stopped, at most 20, by name."""
        self._client, self._flow, self._on_news = client, flow.removeprefix("flows/"), on_news
        self._views: dict[str, FlowView] = {self._flow: FlowView(self._flow)} if flow else {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self.left_out = 0
        self.chosen = bool(flow)
        """Whether it is known which flows there are to watch."""

    @property
    def views(self) -> list[FlowView]:
        """By name of the flow; what is shown does not change by itself."""
        return [replace(self._views[name]) for name in sorted(self._views)]

    async def run(self) -> None:
        """Until a watch ends for good: raises why."""
        try:
            if self._flow:
                await self._watch(self._flow)
            else:
                await self._watch_flows()
        finally:
            for watch in self._watches.values():
                watch.cancel()
            await asyncio.gather(*self._watches.values(), return_exceptions=True)

    async def _watch(self, flow: str) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(flow, "hops", self._client.watch_hops(flow, windows=WINDOWS_S)))
            tasks.create_task(self._follow(flow, "status", self._client.watch_status(flow, away_s=AWAY_S)))

    async def _follow(self, flow: str, what: str, messages: AsyncGenerator[Any, None]) -> None:
        async with aclosing(messages):
            async for message in messages:
                view = self._views.get(flow)
                if view is None:
                    return
                setattr(view, what, message)
                view.heard_at = time.monotonic()
                self._on_news()

    async def _watch_flows(self) -> None:
        from headrace.api.flow.v1 import flow_pb2

        known: dict[str, bool] = {}
        async with aclosing(self._client.watch_flows(away_s=AWAY_S)) as messages:
            async for message in messages:
                for flow in message.flows:
                    known[flow.name.removeprefix("flows/")] = flow.state != flow_pb2.FLOW_STATE_STOPPED
                for name in message.deleted:
                    known.pop(name.removeprefix("flows/"), None)
                if message.synced:
                    self._choose([name for name, runs in sorted(known.items()) if runs])

    def _choose(self, names: list[str]) -> None:
        self.left_out = max(0, len(names) - MOST_FLOWS)
        chosen = names[:MOST_FLOWS]
        for gone in self._watches.keys() - set(chosen):
            self._watches.pop(gone).cancel()
            del self._views[gone]
        for name in chosen:
            if name not in self._watches:
                self._views[name] = FlowView(name)
                self._watches[name] = asyncio.create_task(self._watch_alone(name), name=f"top of {name}")
        self.chosen = True
        self._on_news()

    async def _watch_alone(self, name: str) -> None:
        try:
            await self._watch(name)
        except* HeadraceError as errors:
            if name in self._views:
                self._views[name].problem = f"{name}: {errors.exceptions[0]}"
        self._on_news()
