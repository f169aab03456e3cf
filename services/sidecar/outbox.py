"""Publishes messages until the broker has them: the same id again after silence, in turn while an edge is full.

Every message ends in exactly one call of its `on_stored` or `on_refused` (a dead letter always in the former),
unless the sidecar ends first. While
an edge is full one probe per edge is on its way and the rest wait here; they hold their inputs' credit, so
that the step stops pulling and the pressure goes upstream. What is `ordered` goes one after the other: a message
without an answer keeps its edge until it has one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.edge.clock_pair import read_clocks
from headrace.edge.structured_log import get_logger
from headrace.ports import BatchMessage, JetStreamLane, LaneFull, PublishRefused, PublishUnknown, Stored
from headrace.wire.envelope import seal
from services.sidecar.domain.delivery import Problem
from services.sidecar.domain.edge_window import EdgeWindow
from services.sidecar.domain.output_answers import ANSWERS, Fate, OutputAnswer, refusal
from services.sidecar.domain.retry_delay import PROBE_S, jittered, republish_delay_s

if TYPE_CHECKING:
    from services.sidecar.timers import Timers

log = get_logger(__name__)

ENOUGH_FOR_ROWS = 16
LONG_LINE = 64
"""Where the lane stores one by one: when so many wait for one edge, whose answers come one after the other, a batch is
sooner done, and costs the broker no more."""
MOST_IN_A_ROW = 128
MOST_ROW_BYTES = 1024 * 1024

PublishInOrder = Callable[[list[BatchMessage], Callable[..., None], Any], None]


class Outgoing(msgspec.Struct, eq=False):
    """One message on its way to one subject. With `sealed` the payload is sent as it is; else the id and the
    time of writing are appended at each try. `about` is its maker's."""

    subject: str
    message_id: str
    payload: bytes
    traceparent: str
    on_stored: Callable[[Outgoing, Stored], None]
    on_refused: Callable[[Outgoing, Problem], None]
    about: Any = None
    sealed: bool = False
    ordered: bool = False
    # Never given up: a dead letter, for which there is no other place.
    until_stored: bool = False
    withdrawn: bool = False
    tries: int = 0
    written_at_unix_ns: int = 0
    written_at_mono_ns: int = 0


@dataclass(slots=True)
class OutboxEdge:
    """Of one subject: what waits for it, and how it does."""

    window: EdgeWindow
    ordered: bool
    waiting: deque[Outgoing] = field(default_factory=deque)
    probing: bool = False
    full_since: float = 0.0
    """CLOCK_MONOTONIC, seconds; 0 while it is not full."""
    silent_since: float = 0.0
    """The same, while publishes get no answer, or one that says to try again."""
    repeating: int = 0
    """Messages that wait to be published again after no answer."""
    one_by_one: int = 0
    """Where many go in a row: so many go alone first, one of which a row was refused for."""

    @property
    def troubled(self) -> bool:
        """Something of it was refused, or had no answer, and nothing was stored since."""
        return bool(self.full_since or self.silent_since)


@dataclass(frozen=True, slots=True)
class Blocked:
    """An edge on which messages wait: `why` is `full` or `unanswered`, `for_s` since when."""

    subject: str
    waiting: int
    why: str
    for_s: float


class Outbox:
    """Bounded by its callers: what waits here belongs to inputs that hold credit.

    `retired` tells whether the deployment's state document says RETIRED; `no_responders` is called when a
    publish met no stream, so that the document is read again; `on_idle` when nothing is on its way any more.
    """

    def __init__(
        self,
        lane: JetStreamLane,
        timers: Timers,
        counters: dict[str, int],
        *,
        retired: Callable[[], bool],
        no_responders: Callable[[], None],
        on_idle: Callable[[], None],
    ) -> None:
        self.lane = lane
        self._timers = timers
        self._counters = counters
        self._retired = retired
        self._no_responders = no_responders
        self._on_idle = on_idle
        self._edges: dict[str, OutboxEdge] = {}
        together: PublishInOrder | None = getattr(lane, "publish_in_order", None)
        self._groups = together is not None
        self._in_order: PublishInOrder = together or partial(_publish_in_order, lane)
        self.unsettled = 0

    def put(self, outgoing: Outgoing) -> None:
        """Sends now if the edge takes messages, else when it does."""
        self.unsettled += 1
        edge = self._edges.get(outgoing.subject) or self.edge(outgoing.subject, ordered=outgoing.ordered)
        if edge.waiting or not edge.window.may_send():
            edge.waiting.append(outgoing)
        else:
            self._send(edge, outgoing)

    def edge(self, subject: str, *, ordered: bool = False) -> OutboxEdge:
        """The edge with that subject, always the same one."""
        edge = self._edges.get(subject)
        if edge is None:
            edge = self._edges[subject] = OutboxEdge(EdgeWindow(ordered=ordered), ordered)
        return edge

    def blocked(self) -> list[Blocked]:
        """Edges on which something waits for the receiver, or for the broker."""
        now = time.monotonic()
        found: list[Blocked] = []
        for subject, edge in self._edges.items():
            if edge.silent_since and edge.repeating:
                waiting = len(edge.waiting) + edge.repeating
                found.append(Blocked(subject, waiting, "unanswered", now - edge.silent_since))
            elif edge.full_since and edge.waiting:
                found.append(Blocked(subject, len(edge.waiting), "full", now - edge.full_since))
        return found

    def withdraw(self, outgoing: Outgoing) -> None:
        """Its caller gives it up: it is not tried again, and unless an answer is under way nothing is called."""
        outgoing.withdrawn = True
        edge = self._edges.get(outgoing.subject)
        if edge is not None and outgoing in edge.waiting:
            edge.waiting.remove(outgoing)
            self.one_settled()

    def _send(self, edge: OutboxEdge, outgoing: Outgoing) -> bool:
        """False when the lane has no room: the message went back to the head of the line."""
        edge.window.sent()
        outgoing.written_at_unix_ns, outgoing.written_at_mono_ns = read_clocks()
        payload = outgoing.payload
        if not outgoing.sealed:
            payload = seal(payload, outgoing.message_id, outgoing.written_at_unix_ns)
        try:
            self.lane.publish_told(
                outgoing.subject,
                payload,
                self.answered,
                outgoing,
                message_id=outgoing.message_id,
                traceparent=outgoing.traceparent,
            )
        except LaneFull:
            edge.window.unanswered()
            edge.waiting.appendleft(outgoing)
            self._probe_later(edge)
            return False
        except ValueError as error:
            edge.window.unanswered()
            self._refuse(edge, outgoing, Problem("OUTPUT_REFUSED", f"the output cannot be published: {error}"))
            return True
        return True

    def answered(self, outgoing: Outgoing, answer: Stored | PublishRefused | PublishUnknown) -> None:
        """What the broker says to a message that was sent."""
        edge = self._edges[outgoing.subject]
        if isinstance(answer, Stored):
            edge.window.stored(waiting=len(edge.waiting))
            edge.silent_since = 0.0
            if not edge.window.recovering:
                edge.full_since = 0.0
            if answer.duplicate:
                self._counters[ANSWERS[OutputAnswer.DUPLICATE].counter] += 1
            outgoing.on_stored(outgoing, answer)
            self.one_settled()
            if edge.waiting:
                self._pump(edge)
            return
        self._not_stored(edge, outgoing, answer)

    def _not_stored(self, edge: OutboxEdge, outgoing: Outgoing, error: PublishRefused | PublishUnknown) -> None:
        answer = refusal(error.code) if isinstance(error, PublishRefused) else OutputAnswer.UNANSWERED
        rule = ANSWERS[answer]
        if rule.fate is Fate.WAIT:
            self._counters[rule.counter] += 1
            edge.window.refused()
            edge.full_since = edge.full_since or time.monotonic()
            edge.silent_since = 0.0
            if outgoing.withdrawn:
                self.one_settled()
            else:
                edge.waiting.appendleft(outgoing)
            self._probe_later(edge)
        elif rule.fate is Fate.DEAD_LETTER:
            edge.window.unanswered()
            self._refuse(edge, outgoing, Problem(rule.code, f"the broker refuses the output: {error}"))
            self._pump(edge)
        else:
            if isinstance(error, PublishUnknown) and error.no_responders:
                self._no_responders()
            elif isinstance(error, PublishRefused):
                log.warning("publish refused", subject=outgoing.subject, error=str(error), tries=outgoing.tries)
            self._repeat(edge, outgoing)

    def _repeat(self, edge: OutboxEdge, outgoing: Outgoing) -> None:
        if not edge.ordered:
            edge.window.unanswered()
        self._again_later(edge, outgoing)

    def _again_later(self, edge: OutboxEdge, outgoing: Outgoing) -> None:
        outgoing.tries += 1
        edge.repeating += 1
        edge.silent_since = edge.silent_since or time.monotonic()
        self._counters[ANSWERS[OutputAnswer.UNANSWERED].counter] += 1
        delay_s = jittered(republish_delay_s(outgoing.tries), random.random())  # noqa: S311
        self._timers.later(delay_s, partial(self._try_again, edge, outgoing))
        if edge.waiting and not edge.ordered:
            self._probe_later(edge)

    def _try_again(self, edge: OutboxEdge, outgoing: Outgoing) -> None:
        edge.repeating -= 1
        if edge.ordered:
            edge.window.unanswered()
        self._send_again(edge, outgoing)
        if edge.ordered:
            self._pump(edge)

    def _send_again(self, edge: OutboxEdge, outgoing: Outgoing) -> None:
        if outgoing.withdrawn:
            self.one_settled()
        elif self._retired() and not outgoing.until_stored:
            reason = "the deployment is retired; its edges take no more messages"
            self._refuse(edge, outgoing, Problem(ANSWERS[OutputAnswer.RETIRED].code, reason))
        elif edge.window.may_send():
            self._send(edge, outgoing)
        else:
            edge.waiting.appendleft(outgoing)
            self._probe_later(edge)

    def _refuse(self, edge: OutboxEdge, outgoing: Outgoing, problem: Problem) -> None:
        if outgoing.until_stored:
            log.error("a dead letter is refused, it is tried on", subject=outgoing.subject, error=problem.message)
            self._again_later(edge, outgoing)
            return
        outgoing.on_refused(outgoing, problem)
        self.one_settled()

    def one_settled(self) -> None:
        """A message came to its end."""
        self.some_settled(1)

    def some_settled(self, count: int) -> None:
        self.unsettled -= count
        if self.unsettled == 0:
            self._on_idle()

    def _pump(self, edge: OutboxEdge) -> None:
        while edge.waiting and edge.window.may_send():
            if edge.ordered and not edge.one_by_one and self._waits_in_rows(edge):
                if not self._send_row(edge):
                    return
                continue
            edge.one_by_one = max(0, edge.one_by_one - 1)
            if not self._send(edge, edge.waiting.popleft()):
                return

    # Rows: what waits for an ordered edge, stored in its order or not at all

    def _waits_in_rows(self, edge: OutboxEdge) -> bool:
        """There is enough for a batch: on all edges together, where the lane makes one of them."""
        if not self._groups:
            return len(edge.waiting) >= LONG_LINE
        return sum(len(edge.waiting) for edge in self._edges.values() if edge.ordered) >= ENOUGH_FOR_ROWS

    def _send_row(self, edge: OutboxEdge) -> bool:
        row, size = [edge.waiting.popleft()], 0
        while edge.waiting and len(row) < MOST_IN_A_ROW and (size := size + len(row[-1].payload)) < MOST_ROW_BYTES:
            row.append(edge.waiting.popleft())
        unix_ns, mono_ns = read_clocks()
        messages = []
        for outgoing in row:
            outgoing.written_at_unix_ns, outgoing.written_at_mono_ns = unix_ns, mono_ns
            payload = outgoing.payload if outgoing.sealed else seal(outgoing.payload, outgoing.message_id, unix_ns)
            messages.append(BatchMessage(outgoing.subject, payload, outgoing.message_id, outgoing.traceparent))
        edge.window.sent()
        try:
            self._in_order(messages, self._row_answered, (edge, row))
        except (LaneFull, ValueError):
            edge.window.unanswered()
            self._put_back(edge, row)
            self._probe_later(edge)
            return False
        return True

    def _row_answered(
        self, about: tuple[OutboxEdge, list[Outgoing]], answer: Stored | PublishRefused | PublishUnknown
    ) -> None:
        edge, row = about
        if isinstance(answer, Stored):
            edge.window.stored(waiting=len(edge.waiting))
            edge.silent_since = 0.0
            if not edge.window.recovering:
                edge.full_since = 0.0
            for back, outgoing in enumerate(row, 1 - len(row)):
                outgoing.on_stored(outgoing, Stored(answer.sequence + back, False))
                self.one_settled()
            self._pump(edge)
            return
        self._put_back(edge, row)
        if isinstance(answer, PublishUnknown):
            # The next of this slot waits until it is known what became of these: the first goes again, alone.
            edge.silent_since = edge.silent_since or time.monotonic()
            self._counters[ANSWERS[OutputAnswer.UNANSWERED].counter] += 1
            if answer.no_responders:
                self._no_responders()
            self._timers.later(jittered(republish_delay_s(1), random.random()), partial(self._row_again, edge))  # noqa: S311
            return
        if answer.edge_full:
            self._counters[ANSWERS[OutputAnswer.EDGE_FULL].counter] += 1
            edge.full_since = edge.full_since or time.monotonic()
            edge.window.refused()
        else:
            edge.window.unanswered()
        self._probe_later(edge)

    def _row_again(self, edge: OutboxEdge) -> None:
        edge.window.unanswered()
        self._pump(edge)

    def _put_back(self, edge: OutboxEdge, row: list[Outgoing]) -> None:
        """To the head of the line, in their order, to go one by one."""
        for outgoing in reversed(row):
            if outgoing.withdrawn:
                self.one_settled()
            else:
                edge.waiting.appendleft(outgoing)
        edge.one_by_one = len(row)

    def _probe_later(self, edge: OutboxEdge) -> None:
        if not edge.probing:
            edge.probing = True
            self._timers.later(jittered(PROBE_S, random.random()), partial(self._probe, edge))  # noqa: S311

    def _probe(self, edge: OutboxEdge) -> None:
        edge.probing = False
        if not edge.waiting:
            return
        if edge.window.may_probe():
            self._send(edge, edge.waiting.popleft())
        elif edge.window.may_send():
            self._pump(edge)
        if edge.waiting and edge.window.recovering and edge.window.in_flight == 0:
            self._probe_later(edge)


def _publish_in_order(lane: JetStreamLane, messages: list[BatchMessage], tell: Callable[..., None], about: Any) -> None:
    """As `GroupingLane.publish_in_order`, at once."""
    lane.publish_batch(messages).add_done_callback(partial(_row_told, tell, about))


def _row_told(tell: Callable[..., None], about: Any, future: asyncio.Future[Stored]) -> None:
    error = PublishUnknown("given up") if future.cancelled() else future.exception()
    if error is None:
        tell(about, future.result())
    else:
        tell(about, error if isinstance(error, PublishRefused | PublishUnknown) else PublishUnknown(str(error)))
