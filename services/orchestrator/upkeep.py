"""What an orchestrator does by itself: it looks for flows that changed, and clears away what is over.

Each loop tries again after an error; every orchestrator watches, only the leader clears away.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from headrace.edge.structured_log import get_logger
from headrace.model.errors import HeadraceError
from services.orchestrator.lease import Lease
from services.orchestrator.operation_pruner import prune_operations
from services.orchestrator.pin_sweeper import sweep_pins
from services.orchestrator.reconcile_loop import RESYNC_S
from services.orchestrator.stores import Stores
from services.orchestrator.term import Term
from services.orchestrator.wall_clock import WallClock

log = get_logger(__name__)

WATCH_PAUSE_S = 0.5
PRUNE_S = 3600.0


class Upkeep:
    """`wake` is called with each flow whose document changed."""

    def __init__(self, stores: Stores, lease: Lease, term: Term, clock: WallClock, wake: Callable[[str], None]) -> None:
        self._stores = stores
        self._lease = lease
        self._term = term
        self._clock = clock
        self._wake = wake

    def begin(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Its loops; the caller ends them."""
        return [
            tasks.create_task(self._watch_flows(), name="watch flows"),
            tasks.create_task(self._resync(), name="resync"),
            tasks.create_task(self._prune(), name="prune operations"),
        ]

    async def _watch_flows(self) -> None:
        """Wakes a flow's loop at each change of its document, whoever wrote it."""
        while True:
            try:
                async with contextlib.aclosing(self._stores.flows.watch("flow.*")) as watch:
                    async for entry in watch:
                        if entry is not None:
                            self._wake(entry.key.removeprefix("flow."))
            except Exception as error:
                log.warning("flow watch ended, it is begun again", error=repr(error)[:300])
            await asyncio.sleep(WATCH_PAUSE_S)

    async def _resync(self) -> None:
        """Every loop looks again every few seconds by itself; this finds flows that no watch told of."""
        while True:
            try:
                await self._term.find_new()
            except HeadraceError as error:
                log.warning("resync failed, it is repeated", error=str(error)[:300])
            await asyncio.sleep(RESYNC_S)

    async def _prune(self) -> None:
        while True:
            try:
                if self._lease.leading:
                    await prune_operations(self._stores, self._clock.now())
                    await sweep_pins(self._stores)
            except HeadraceError as error:
                log.warning("operations and pins could not be pruned", error=str(error)[:300])
            await asyncio.sleep(PRUNE_S)
