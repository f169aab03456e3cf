"""Callers that wait for a reply, by execution id. Bounded by the gateway's admission; every wait has a limit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from headrace.edge.clock_pair import read_clocks
from headrace.edge.structured_log import get_logger
from headrace.edge.sweep_timer import NEVER, SweepTimer
from headrace.ports import LaneFull, PublishRefused, PublishUnknown, Stored
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


NotStored = PublishRefused | PublishUnknown | LaneFull


class Waiter:
    """One caller's wait. `end` may be called any number of times; the first counts."""

    __slots__ = ("_loop", "deadline", "execution", "outcome", "stored")

    def __init__(self, execution: str, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.execution = execution
        self.deadline = deadline
        self.outcome: asyncio.Future[ReceivedReply | NoReply | NotStored] = loop.create_future()
        self.stored = False
        """Whether the broker has said that it has the stimulus, where it was asked by `told`."""

    def end(self, outcome: ReceivedReply | NoReply) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def told(self, answer: Stored | PublishRefused | PublishUnknown) -> None:
        """What became of the publish: whoever waits goes on waiting if it is stored; else it gets the error, and what
        comes from then on ends another wait."""
        if isinstance(answer, Stored):
            self.stored = True
        elif not self.outcome.done():
            interrupted, self.outcome = self.outcome, self._loop.create_future()
            interrupted.set_result(answer)

    def caller_gone(self) -> None:
        self.end(NoReply.CALLER_GONE)

    @property
    def has_reply(self) -> bool:
        return self.outcome.done() and isinstance(self.outcome.result(), ReceivedReply)

    def is_over(self) -> bool:
        return self.outcome.done()


class ReplyDesk:
    """Matches replies to waiters. Several requests may wait for one execution (a key taken over)."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Waiter]] = {}
        self._deadlines: SweepTimer | None = None
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
        waiting = self._waiting.get(execution)
        if waiting is None:
            self._waiting[execution] = [waiter]
        else:
            waiting.append(waiter)
        if self._deadlines is None:
            self._deadlines = SweepTimer(self._sweep)
        if deadline < self._deadlines.at:
            self._deadlines.arm(deadline)
        return waiter

    def _sweep(self, now: float) -> float:
        following = NEVER
        for waiters in self._waiting.values():
            for waiter in waiters:
                if waiter.deadline <= now:
                    waiter.end(NoReply.DEADLINE)
                elif waiter.deadline < following:
                    following = waiter.deadline
        return following

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
