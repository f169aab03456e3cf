"""Pulls one durable consumer through a NatsLink: credit, overlapping requests, heartbeats, recovery.

Accounting: `asked` messages may still come from open pull requests (`open_pulls`), `held` were handed over and
not released; asked + held never exceeds the credit. One exception: a server that forgot deliveries whose acks are
not confirmed (see `lane_acks`) is asked for them again, whatever the credit; should it send others instead, they
wait here as `surplus`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from headrace.edge.clock_pair import read_clocks
from headrace.edge.lane_acks import AckBook, AckGroup
from headrace.edge.nats_link import NatsLink
from headrace.edge.open_pulls import OpenPulls
from headrace.edge.structured_log import get_logger
from headrace.ports import Delivery
from headrace.wire import jetstream
from headrace.wire.jetstream_answers import MalformedAnswer
from headrace.wire.nats_protocol import Frame

log = get_logger(__name__)

EXPIRES_S = 30.0
HEARTBEAT_S = 5.0
MISSED_HEARTBEATS = 2
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 1.0
STOP_LIMIT_S = 2.0
MAX_SUBJECTS = 64


class PullConsumption:
    """Implements `headrace.ports.Consumption`. `on_deliveries` gets one list per read of the socket."""

    def __init__(
        self,
        link: NatsLink,
        acks: AckBook,
        inbox: str,
        stream: str,
        consumer: str,
        credit: int,
        on_deliveries: Callable[[list[Delivery]], None],
        *,
        on_stopped: Callable[[PullConsumption], None],
        heartbeat_s: float = HEARTBEAT_S,
        expires_s: float = EXPIRES_S,
    ) -> None:
        if credit < 1:
            raise ValueError(f"credit: {credit} is below 1")
        self._link, self._acks, self._inbox, self._credit = link, acks, inbox, credit
        self._stream, self._consumer = stream, consumer
        self._on_deliveries, self._on_stopped = on_deliveries, on_stopped
        self._heartbeat_s, self._expires_s = heartbeat_s, expires_s
        self._ack_prefix = jetstream.ack_prefix(stream, consumer)
        self._pull_subject = jetstream.pull_subject(stream, consumer)
        self._loop = asyncio.get_running_loop()
        self._pulls = OpenPulls()
        self._ack_group = AckGroup()
        self._subjects: dict[bytes, str] = {}
        self._number = 0
        self._epoch = 0
        self._sid = 0
        self._held = 0
        self._ready: list[Delivery] = []
        self._surplus: deque[Delivery] = deque()
        self._read_at = (0, 0)
        self._refill_scheduled = False
        self._paused = True
        self._stopping = False
        self._heard = False
        self._failures = 0
        self._backoff: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._problem = ""

    @property
    def problem(self) -> str:
        return self._problem

    def pause(self) -> None:
        """The connection is down: what was asked for will not come."""
        self._paused = True
        self._pulls.clear()
        self._cancel_timers()

    def resume(self) -> None:
        """The connection stands: ask (again), on a fresh inbox so that answers to old requests miss it."""
        if self._stopping:
            return
        self._paused = False
        self._renew()

    def release(self, count: int = 1) -> None:
        self._held = max(0, self._held - count)
        while self._surplus and self._held < self._credit:
            self._make_ready([self._surplus.popleft()])
        # Nothing is asked for before half of the credit is free, but for what the server forgot; see `_refill`.
        if not self._refill_scheduled and (
            2 * (self._credit - self._held - self._pulls.asked) >= self._credit
            or not self._pulls.asked
            or self._acks.any_unsettled
        ):
            self._refill_scheduled = True
            self._loop.call_soon(self._refill)

    async def stop(self) -> None:
        """Bounded by 2 s. A message that the broker is just sending when interest is withdrawn comes back
        after the ack wait."""
        if self._stopping:
            return
        self._stopping = True
        self._cancel_timers()
        if self._sid:
            self._link.unsubscribe(self._sid)
            if self._link.up:
                await asyncio.wait([self._link.ping()], timeout=STOP_LIMIT_S)
        self.abandon()

    def abandon(self) -> None:
        """Ends at once, without a word to the server; hands over what has arrived."""
        self._stopping = True
        self._cancel_timers()
        self._ready.extend(self._surplus)
        self._surplus.clear()
        self._hand_over()
        if self._sid:
            self._link.forget(self._sid)
            self._sid = 0
        self._on_stopped(self)

    def _renew(self) -> None:
        if self._sid:
            self._link.forget(self._sid)
        self._pulls.clear()
        self._epoch += 1
        self._sid = self._link.subscribe(f"{self._inbox}.{self._epoch}.*", self._on_messages)
        self._refill()
        self._arm_watch()

    def _refill(self) -> None:
        self._refill_scheduled = False
        if self._paused or self._stopping or self._backoff is not None:
            return
        asked = self._pulls.asked
        limit = self._credit + self._acks.unsettled(self._stream, self._consumer)
        wanted = limit - self._held - len(self._surplus) - asked
        # Half of the credit at a time; less only when nothing more would come otherwise.
        if wanted < 1 or (asked and 2 * wanted < self._credit):
            return
        self._number += 1
        body = jetstream.pull_request(wanted, expires_s=self._expires_s, heartbeat_s=self._heartbeat_s)
        inbox = f"{self._inbox}.{self._epoch}.{self._number}"
        self._link.write(f"PUB {self._pull_subject} {inbox} {len(body)}\r\n".encode() + body + b"\r\n")
        self._pulls.add(b"%d" % self._number, wanted, self._loop.time())

    def _on_messages(self, frames: list[Frame]) -> None:
        self._heard = True
        if not self._ready:
            self._read_at = read_clocks()
        unix_ns, mono_ns = self._read_at
        subjects, group = self._subjects, self._ack_group
        fresh: list[Delivery] = []
        prefix, after = self._ack_prefix, len(self._ack_prefix)
        some_unsettled = self._acks.any_unsettled
        for _, subject, reply, data, headers in frames:
            try:
                if reply.startswith(prefix):
                    numbers = jetstream.delivery_numbers(reply, after)
                elif reply.startswith(b"$JS.ACK."):
                    numbers = jetstream.delivery_numbers(reply)
                elif headers is not None:
                    self._take(fresh)
                    fresh = []
                    self._on_status(subject, headers)
                    continue
                else:
                    continue
            except MalformedAnswer as error:
                log.error("a message could not be handled", consumer=self._consumer, error=str(error)[:300])
                continue
            if some_unsettled and self._acks.claim(jetstream.parse_ack_subject(reply), reply):
                self._take(fresh)
                fresh = []
                self._pulls.count_deliveries(1)
                self.release(0)
                continue
            message_id, traceparent = jetstream.delivery_headers(headers) if headers else ("", "")
            fresh.append(
                Delivery(
                    subjects.get(subject) or self._subject(subject),
                    data,
                    message_id,
                    traceparent,
                    numbers[1],
                    numbers[0],
                    numbers[3],
                    unix_ns,
                    mono_ns,
                    reply,
                    numbers[2],
                    group,
                )
            )
        self._take(fresh)

    def _take(self, fresh: list[Delivery]) -> None:
        """Counts them, and makes ready what there is credit for."""
        if not fresh:
            return
        self._pulls.count_deliveries(len(fresh))
        room = max(0, self._credit - self._held)
        if len(fresh) > room:
            self._surplus.extend(fresh[room:])
            fresh = fresh[:room]
        self._make_ready(fresh)

    def _subject(self, subject: bytes) -> str:
        """A consumer delivers of few subjects."""
        if len(self._subjects) >= MAX_SUBJECTS:
            self._subjects.clear()
        known = self._subjects[subject] = subject.decode()
        return known

    def _make_ready(self, deliveries: list[Delivery]) -> None:
        if deliveries and not self._ready:
            self._link.after_read(self._hand_over)
        self._ready += deliveries
        self._held += len(deliveries)

    def _hand_over(self) -> None:
        deliveries, self._ready = self._ready, []
        if not deliveries:
            return
        if self._failures or self._problem:
            self._failures, self._problem = 0, ""
        try:
            self._on_deliveries(deliveries)
        except Exception:
            log.exception("deliveries could not be handed over", consumer=self._consumer, count=len(deliveries))
        self._refill()

    def _on_status(self, subject: bytes, headers: bytes) -> None:
        code, text = jetstream.parse_status(headers)
        if code == jetstream.HEARTBEAT:
            self._failures, self._problem = 0, ""
            return
        pull = self._pulls.end(subject.rpartition(b".")[2])
        if pull is None:
            return
        # An early end (paused, deleted, no responders, leader change) must not turn into a busy loop.
        early = self._loop.time() - pull.made_at < self._expires_s / 2
        if code in (jetstream.REQUEST_TIMEOUT, jetstream.NO_MESSAGES) and not early:
            self._refill()
            return
        self._fail("no responders" if code == jetstream.NO_RESPONDERS else text or f"status {code}")

    def _fail(self, cause: str) -> None:
        if not self._problem:
            log.info("a pull ended", stream=self._stream, consumer=self._consumer, cause=cause)
        self._problem = f"consumer {self._consumer} of stream {self._stream}: {cause}"
        if self._backoff is None and not self._stopping:
            delay = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(self._failures, 10))
            self._failures += 1
            self._backoff = self._loop.call_later(delay, self._end_backoff)

    def _end_backoff(self) -> None:
        self._backoff = None
        self._refill()

    def _arm_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._heard = False
        self._watch = self._loop.call_later(MISSED_HEARTBEATS * self._heartbeat_s, self._check_heard)

    def _check_heard(self) -> None:
        self._watch = None
        if self._paused or self._stopping:
            return
        if self._pulls.asked and not self._heard:
            self._problem = f"consumer {self._consumer} of stream {self._stream}: no heartbeat"
            self._renew()
            return
        self._arm_watch()

    def _cancel_timers(self) -> None:
        for timer in (self._backoff, self._watch):
            if timer is not None:
                timer.cancel()
        self._backoff = self._watch = None
