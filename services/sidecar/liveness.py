"""Whether the component still answers: pings through the Process stream, asked only while calls run and all is quiet.

A ping is answered by the component's event loop, so it tells two kinds of late calls apart. One that blocks the loop
(plain code in an async function) leaves the ping unanswered too, and holds up every other call: nothing but a new
process helps. One that hangs in a thread, or awaits what never comes, does not: then the call alone is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.edge.structured_log import get_logger

if TYPE_CHECKING:
    from headrace.ports import ComponentStream

log = get_logger(__name__)

QUIET_S = 1.0
"""So long without a frame while calls run, and the component is asked."""
ANSWER_LIMIT_S = 3.0
"""A ping unanswered for so long: the component does not respond."""


class Liveness:
    """One ping at a time. `on_alive` is called when a ping was answered, `on_silent` once when it was not in time;
    the ping is repeated then, until an answer or `component_lost`."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        answer_limit_s: float = ANSWER_LIMIT_S,
        on_alive: Callable[[], None],
        on_silent: Callable[[], None],
    ) -> None:
        self._answer_limit_s = answer_limit_s
        self._clock = clock
        self._on_alive = on_alive
        self._on_silent = on_silent
        self._stream: ComponentStream | None = None
        self._asking: asyncio.Task[None] | None = None
        self.heard_at = 0.0
        """When the last frame or answer came."""
        self.asked_at = 0.0
        self.silent = False
        """A ping has been waiting for longer than the limit, and still is."""

    def component_ready(self, stream: ComponentStream) -> None:
        self._stream = stream
        self.heard_at = self._clock()

    def component_lost(self) -> None:
        self._stream = None
        self.silent = False
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    def heard(self) -> None:
        """A frame came."""
        self.heard_at = self._clock()

    def look(self) -> None:
        """Calls run: asks if nothing was heard for a while."""
        if self._clock() - self.heard_at > QUIET_S:
            self.ask()

    def ask(self) -> None:
        """Sends a ping, unless one is on its way."""
        if self._asking is None and self._stream is not None:
            self.asked_at = self._clock()
            self._asking = asyncio.get_running_loop().create_task(self._ask(self._stream), name="liveness")

    async def _ask(self, stream: ComponentStream) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                try:
                    await stream.ping(self._answer_limit_s)
                    break
                except TimeoutError:
                    if self.heard_at > self.asked_at:
                        break  # frames come: it works, and has a lot to write
                    if not self.silent:
                        self.silent = True
                        self._on_silent()
            self._asking = None
            self.silent = False
            self.heard()
            self._on_alive()

    @property
    def problem(self) -> str:
        """What is wrong at present; empty while the component answers."""
        if not self.silent:
            return ""
        return f"the component has not answered for {self._clock() - self.asked_at:.0f} s: its event loop is blocked"
