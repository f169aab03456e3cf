"""Callers that wait for a reply, by execution id. Bounded by the gateway's admission; every wait has a limit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from headrace.edge.clock_pair import read_clocks
from headrace.edge.structured_log import get_logger
from headrace.wire.envelope import MalformedMessage, Reply, decode_reply

log = get_logger(__name__)


class NoReply(Enum):
    """Why a wait ended without a reply."""

    DEADLINE = "DEADLINE"
    CALLER_GONE = "CALLER_GONE"
    STOPPING = "STOPPING"


@dataclass(slots=True)
class ReceivedReply:
    """A reply and when it was read (for the hop's phases)."""

    reply: Reply
    read_at_unix_ns: int = 0
    read_at_mono_ns: int = 0


class Waiter:
    """One caller's wait. `end` may be called any number of times; the first counts."""

    __slots__ = ("_timer", "execution", "outcome")

    def __init__(self, execution: str, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        self.execution = execution
        self.outcome: asyncio.Future[ReceivedReply | NoReply] = loop.create_future()
        self._timer = loop.call_at(deadline, self.end, NoReply.DEADLINE)

    def end(self, outcome: ReceivedReply | NoReply) -> None:
        self._timer.cancel()
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def caller_gone(self) -> None:
        self.end(NoReply.CALLER_GONE)

    def is_over(self) -> bool:
        return self.outcome.done()


class ReplyDesk:
    """Matches replies to waiters. Several requests may wait for one execution (a key taken over)."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Waiter]] = {}
        self.unclaimed = 0
        """Replies nobody waited for: late, or their caller had gone."""

    def __len__(self) -> int:
        return len(self._waiting)

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()  # asked once: it costs a system call

    def expect(self, execution: str, deadline: float) -> Waiter:
        """Begins a wait until `deadline` (the loop's clock); end it with `forget`."""
        waiter = Waiter(execution, deadline, self._loop)
        self._waiting.setdefault(execution, []).append(waiter)
        return waiter

    def forget(self, waiter: Waiter) -> None:
        waiter.caller_gone()
        waiters = self._waiting.get(waiter.execution)
        if waiters is None or waiter not in waiters:
            return
        waiters.remove(waiter)
        if not waiters:
            del self._waiting[waiter.execution]

    def on_message(self, payload: bytes) -> None:
        """A message on the reply subject: never raises, whatever arrives."""
        read_at_unix_ns, read_at_mono_ns = read_clocks()
        try:
            reply = decode_reply(payload)
        except MalformedMessage as error:
            log.warning("a reply could not be read", problem=error.message)
            return
        waiters = self._waiting.get(reply.execution_id)
        if not waiters:
            self.unclaimed += 1
            return
        received = ReceivedReply(reply, read_at_unix_ns, read_at_mono_ns)
        for waiter in waiters:
            waiter.end(received)

    def stop_waiting(self) -> int:
        """Ends every wait with STOPPING; answers how many there were."""
        waiters = [waiter for waiters in self._waiting.values() for waiter in waiters]
        for waiter in waiters:
            waiter.end(NoReply.STOPPING)
        return len(waiters)
