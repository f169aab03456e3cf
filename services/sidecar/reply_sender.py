"""Sends replies by core NATS and says when the broker has read them; stores them first where a key asks for it.

A reply is flushed before its input is acknowledged: should the sidecar die between, the redelivery sends it
again and the gateway takes the first. Flushes of replies that wait together share one round trip.

A gateway that does not listen (it lost the broker and is not back yet) may be back in a moment: its replies are sent
again for a while. One that is gone for good costs that while once: it stands as deaf until it is heard again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from headrace.edge.structured_log import get_logger
from headrace.model.answer import finished
from headrace.model.errors import Conflict, HeadraceError
from headrace.model.message_ids import is_answer_key
from headrace.ports import LaneFull
from services.sidecar.domain.retry_delay import republish_delay_s

if TYPE_CHECKING:
    from headrace.edge.kv_bucket import KvBucket
    from headrace.ports import JetStreamLane

log = get_logger(__name__)

# One try; a request that met a broker's restart is never answered.
STORE_TIMEOUT_S = 1.0
# How long a gateway that does not listen is waited for, and how often it is tried.
DEAF_LIMIT_S = 3.0
REPEAT_S = 0.05
MAX_DEAF = 1_000


@dataclass(slots=True)
class OutgoingReply:
    """`payload` is a serialized Reply; `on_sent` is called when the broker has read it."""

    subject: str
    payload: bytes
    execution_id: str
    answer_key: str
    on_sent: Callable[[], None]
    written: bool = False
    unheard: bool = False


class ReplySender:
    """Give `run` to a TaskGroup. Bounded by its callers: each reply belongs to an input that holds credit."""

    def __init__(self, lane: JetStreamLane, answers: Callable[[], KvBucket | None]) -> None:
        self._lane = lane
        self._answers = answers
        self._unflushed: list[OutgoingReply] = []
        self._keyed: list[OutgoingReply] = []
        self._work = asyncio.Event()
        self._deaf: dict[str, float] = {}
        """Reply subjects nobody listens to, and since when."""
        self._repeats: set[asyncio.TimerHandle] = set()
        self.unsettled = 0
        self.unheard = 0
        """Replies given up, because nobody listened."""

    def put(self, reply: OutgoingReply) -> None:
        """Sends now; with an answer key, once the answer is stored."""
        self.unsettled += 1
        if is_answer_key(reply.answer_key):
            self._keyed.append(reply)
        else:
            self._send(reply)
        self._work.set()

    async def run(self) -> None:
        """Stores, flushes and reports, for ever."""
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                keyed, self._keyed = self._keyed, []
                if keyed:
                    await asyncio.gather(*(self._store(reply) for reply in keyed))
                    for reply in keyed:
                        self._send(reply)
                await self._flush()
        finally:
            for repeat in self._repeats:
                repeat.cancel()

    def _send(self, reply: OutgoingReply) -> None:
        self._write(reply)
        self._unflushed.append(reply)

    def _write(self, reply: OutgoingReply) -> None:
        reply.unheard = False
        try:
            self._lane.send(reply.subject, reply.payload, on_unheard=partial(_note_unheard, reply))
        except (ConnectionError, LaneFull) as error:
            log.debug("reply not written yet", error=str(error), execution=reply.execution_id)
            return
        except ValueError as error:
            # A subject or size the broker would refuse: trying again cannot help the caller.
            log.warning("reply not sent", error=str(error), execution=reply.execution_id)
        reply.written = True

    async def _flush(self) -> None:
        batch, self._unflushed = self._unflushed, []
        tries = 0
        while batch:
            try:
                await self._lane.flush()
                for reply in batch:
                    if reply.written and not self._repeat(reply):
                        self.unsettled -= 1
                        reply.on_sent()
                batch = [reply for reply in batch if not reply.written]
            except (TimeoutError, OSError):
                for reply in batch:
                    reply.written = False  # lost with the connection, for all we know
            if batch:
                tries += 1
                await asyncio.sleep(republish_delay_s(tries))
                for reply in batch:
                    self._write(reply)

    def _repeat(self, reply: OutgoingReply) -> bool:
        """Whether it is sent again, because its gateway did not listen and has not been deaf for long."""
        if not reply.unheard:
            self._deaf.pop(reply.subject, None)
            return False
        loop = asyncio.get_running_loop()
        since = self._deaf.setdefault(reply.subject, loop.time())
        if len(self._deaf) > MAX_DEAF:
            del self._deaf[next(iter(self._deaf))]
        if loop.time() - since > DEAF_LIMIT_S:
            self.unheard += 1
            log.info("nobody took the reply", execution=reply.execution_id, subject=reply.subject)
            return False

        def again() -> None:
            self._repeats.discard(handle)
            self._send(reply)
            self._work.set()

        handle = loop.call_later(REPEAT_S, again)
        self._repeats.add(handle)
        return True

    async def _store(self, reply: OutgoingReply) -> None:
        """First answer wins. While the broker does not answer it is tried again, as publishes are: an answer
        that were given up would leave its key without one until it expires."""
        tries = 0
        while (bucket := self._answers()) is not None:
            tries += 1
            try:
                async with asyncio.timeout(STORE_TIMEOUT_S):
                    entry = await bucket.get(reply.answer_key)
                    stored = entry.value if entry is not None else None
                    value = finished(stored, execution=reply.execution_id, reply=reply.payload)
                    if value is not None and entry is not None:
                        await bucket.update(reply.answer_key, value, entry.revision)
                return
            except Conflict:
                continue  # somebody else wrote the record meanwhile: look again
            except (HeadraceError, TimeoutError) as error:
                log.warning("answer not stored yet", error=repr(error), execution=reply.execution_id, tries=tries)
                await asyncio.sleep(republish_delay_s(tries))


def _note_unheard(reply: OutgoingReply) -> None:
    reply.unheard = True
