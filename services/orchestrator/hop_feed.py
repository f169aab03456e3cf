"""Looks at the instances of a flow once a second while somebody watches its hops: one poller per flow, whoever watches.

A question goes to all instances at once; answers are taken whenever they come. A tick ends when all that answered the
last one have answered, or a moment later: whoever is late counts in the next tick.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg

from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.errors import HeadraceError, NotFound
from headrace.model.hop_windows import HopWindows, Look
from headrace.wire.hops import look_of
from services.orchestrator.domain.flow_metrics import StepBacklog
from services.orchestrator.mesh_queries import readable_snapshot
from services.orchestrator.shared_feed import SharedFeed

log = get_logger(__name__)

T = TypeVar("T")
V = TypeVar("V", bound=Hashable)

PERIOD_S = 1.0
# What comes later than this after the question counts in the next tick.
ANSWER_WAIT_S = 0.25
# Whoever has not answered for so long is gone, and is not waited for or named any more.
GONE_S = 5.0
# A watch that is begun again soon (grpcurl, a reconnect) finds its windows filled.
LINGER_S = 5.0
MOST_INSTANCES = 10_000


class HopFeed(SharedFeed):
    """The windows of one flow, and what is stored for its steps. `look` reads that, and raises NotFound when the flow
    is gone. The first news only says where everything stands."""

    def __init__(
        self, connection: Client, workspace: str, flow: str, look: Callable[[str], Awaitable[Mapping[str, StepBacklog]]]
    ) -> None:
        super().__init__(flow, LINGER_S)
        self._connection, self._workspace = connection, workspace
        self._look = look
        self._answers: dict[str, Look] = {}
        self._heard_at: dict[str, float] = {}
        self._expected: set[str] = set()
        self._complete = asyncio.Event()
        self._made: dict[Hashable, Any] = {}
        self.windows = HopWindows()
        self.backlogs: Mapping[str, StepBacklog] = {}
        self.silent: list[str] = []
        self.time_unix_ns = 0

    def made(self, view: V, make: Callable[[HopFeed, V], T]) -> T:
        """`make(self, view)`, made once a tick for all who look alike."""
        if view not in self._made:
            self._made[view] = make(self, view)
        made: T = self._made[view]
        return made

    async def follow(self) -> None:
        inbox = self._connection.new_inbox()
        subscription = await self._connection.subscribe(inbox, cb=self._note)
        loop = asyncio.get_running_loop()
        due = loop.time()
        try:
            while self.wanted:
                await self._look_at_flow()
                await self._tick(inbox)
                due = max(due + PERIOD_S, loop.time())
                await asyncio.sleep(due - loop.time())
        finally:
            self.over = True  # nobody joins what ends
            if self._connection.is_connected:
                await subscription.unsubscribe()

    async def _look_at_flow(self) -> None:
        try:
            self.backlogs = await self._look(self.flow)
        except NotFound:
            raise
        except HeadraceError as error:  # the broker is away: the windows go on, with nothing in them
            self.backlogs = {}
            log.debug("what is stored for the flow is not known", flow=self.flow, error=str(error))

    async def _note(self, message: Msg) -> None:
        snapshot = readable_snapshot(message.data) if message.data else None  # empty: nobody listens
        if snapshot is None or len(self._answers) >= MOST_INSTANCES:
            return
        self._answers[snapshot.instance] = look_of(snapshot)
        self._expected.discard(snapshot.instance)
        if not self._expected:
            self._complete.set()

    async def _tick(self, inbox: str) -> None:
        loop = asyncio.get_running_loop()
        asked_at, self.time_unix_ns = loop.time(), time.time_ns()
        known = {name for name, heard in self._heard_at.items() if asked_at - heard < GONE_S}
        self._expected = set(known)
        self._complete.clear()
        if self._connection.is_connected:
            await self._connection.publish(subjects.hop_request_subject(self._workspace, self.flow), b"", reply=inbox)
        # Who is there is not known yet: the first tick waits for everybody.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_WAIT_S):
                await (self._complete.wait() if known else asyncio.Event().wait())
        looks, self._answers = self._answers, {}
        self._heard_at = {name: heard for name, heard in self._heard_at.items() if name in known}
        self._heard_at.update(dict.fromkeys(looks, asked_at))
        self.silent = sorted(known - looks.keys())
        self.windows.tick(asked_at, looks.values())
        self._made.clear()
        self.tell()
