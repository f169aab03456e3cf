"""Many messages of a person to one flow in one call: each a stimulus of its own, stored as far as may be.

Nothing of it is all or nothing: what is refused is named, and can be sent again under its request id. Where the flow
has a key, a slot's messages are stored one after the other, and the first that is not stored holds back those behind
it, so that sending the refused ones again, in their order, keeps the order.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from headrace.api.flow.v1 import flow_pb2
from headrace.api.message.v1 import message_pb2
from headrace.edge.ingress_publisher import IngressPublisher
from headrace.edge.stimulus_traces import StimulusTrace
from headrace.model.errors import Exhausted, HeadraceError, InvalidInput, Unavailable
from headrace.model.message_ids import StimulusIds, execution_id
from headrace.model.trace_context import bounded_baggage
from headrace.ports import LaneFull, PublishRefused, PublishUnknown, ReadFailed, Stored
from services.orchestrator.injection import Entrance, Injector, NotStored, check_body

MOST_MESSAGES = 1_000
MOST_BYTES = 8 * 1024 * 1024
AT_ONCE = 64
"""Unkeyed messages under way on a cluster, of one call; and after so many the loop gets its turn."""
SOON_MS = 100
PLACE_LIMIT_S = 5.0


@dataclass(slots=True)
class _Item:
    """One message on its way; `answer` None until it is known."""

    message: flow_pb2.InjectedMessage
    envelope: message_pb2.Envelope
    slot: int
    trace: StimulusTrace
    answer: Stored | NotStored | HeadraceError | None = None


class BulkInjection:
    """One per call. `traceparent` and `baggage` are the caller's."""

    def __init__(self, injector: Injector, name: str, traceparent: str, baggage: str) -> None:
        self._injector = injector
        self._name = name
        self._traceparent, self._baggage = traceparent, bounded_baggage(baggage)

    async def run(self, messages: Sequence[flow_pb2.InjectedMessage]) -> list[flow_pb2.InjectionOutcome]:
        """One outcome for each, in their order; an error only where nothing was published."""
        _check_bounds(messages)
        async with _place(self._injector.bulk_places):
            return await self._run(messages)

    async def _run(self, messages: Sequence[flow_pb2.InjectedMessage]) -> list[flow_pb2.InjectionOutcome]:
        entrance = await self._injector.entrance(self._name)
        publisher = await self._injector.lane.publisher()
        outcomes = [flow_pb2.InjectionOutcome() for _ in messages]
        items: dict[int, _Item] = {}
        ids = StimulusIds(self._name, "inject", entrance.entry.name)
        for number, message in enumerate(messages):
            try:
                check_body(message.body, message.content_type, ())
                items[number] = self._begin(entrance, ids, message)
            except InvalidInput as error:
                _refuse(outcomes[number], error)
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
        keyed = entrance.entry.key or entrance.entry.slot_count > 1
        if keyed or entrance.fenced:
            lines = _by_slot(items.values()) if keyed else _dealt(list(items.values()))
            await asyncio.gather(*(self._one_by_one(publisher, entrance, line, ordered=bool(keyed)) for line in lines))
        else:
            await self._at_once(publisher, entrance, list(items.values()))
        await self._tell(entrance, items, outcomes)
        return outcomes

    def _begin(self, entrance: Entrance, ids: StimulusIds, message: flow_pb2.InjectedMessage) -> _Item:
        stimulus = ids.stimulus(message.request_id or uuid.uuid4().hex)
        execution = execution_id(stimulus)
        headers = dict(message.headers)
        envelope = message_pb2.Envelope(
            id=ids.first_message(stimulus),
            execution_id=execution,
            origin=message_pb2.Origin.ORIGIN_INJECTED,
            baggage=self._baggage,
            body=message.body,
            content_type=message.content_type or "application/json",
            headers=headers,
        )
        slot = entrance.keying.place(headers, message.body, envelope.id).slot
        trace = self._injector.traces.begin(
            f"inject {self._name}", self._name, execution=execution, stimulus=stimulus, given=self._traceparent
        )
        return _Item(message, envelope, slot, trace)

    async def _at_once(self, publisher: IngressPublisher, entrance: Entrance, items: Sequence[_Item]) -> None:
        """Writes all, then waits for all: each answer comes within the publish's own limit."""
        answers = _Answers(asyncio.get_running_loop().create_future())
        answers.missing = 1  # until all are written
        for number, item in enumerate(items, 1):
            if self._admitted(entrance, item):
                try:
                    publisher.publish_told(
                        self._name,
                        entrance.entry.name,
                        item.slot,
                        item.envelope.SerializeToString(),
                        answers.tell,
                        item,
                        together=entrance.together,
                        message_id=item.envelope.id,
                        traceparent=item.trace.traceparent,
                    )
                    answers.missing += 1
                except LaneFull as full:
                    item.answer = full
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)  # what is written leaves, and others get their turn
        answers.one_less()
        await answers.complete

    async def _one_by_one(
        self, publisher: IngressPublisher, entrance: Entrance, line: Sequence[_Item], *, ordered: bool
    ) -> None:
        for number, item in enumerate(line):
            if self._admitted(entrance, item):
                try:
                    item.answer = await publisher.publish(
                        self._name,
                        entrance.entry.name,
                        item.slot,
                        item.envelope.SerializeToString(),
                        fenced=entrance.fenced,
                        together=entrance.together,
                        message_id=item.envelope.id,
                        traceparent=item.trace.traceparent,
                    )
                    continue
                except (PublishRefused, PublishUnknown, LaneFull, ReadFailed) as error:
                    item.answer = error
            if ordered:
                for behind in line[number + 1 :]:
                    behind.answer = _held_back()
                return

    def _admitted(self, entrance: Entrance, item: _Item) -> bool:
        try:
            self._injector.check_rate(entrance)
        except HeadraceError as error:
            item.answer = error
            return False
        item.envelope.sent_at_unix_ns = self._injector.now_unix_ns()
        return True

    async def _tell(
        self, entrance: Entrance, items: Mapping[int, _Item], outcomes: Sequence[flow_pb2.InjectionOutcome]
    ) -> None:
        problems: dict[str, HeadraceError] = {}
        for number, item in items.items():
            answer, outcome = item.answer, outcomes[number]
            outcome.execution_id = item.envelope.execution_id
            if isinstance(answer, Stored):
                outcome.duplicate = answer.duplicate
                self._injector.traces.end(item.trace, duplicate=answer.duplicate)
                continue
            assert answer is not None
            if isinstance(answer, HeadraceError):
                error = answer
            else:
                kind = repr(answer)
                error = problems.get(kind) or await self._injector.problem(entrance.document, answer)
                problems[kind] = error
            _refuse(outcome, error)
            outcome.refusal.uncertain = isinstance(answer, PublishUnknown) and not answer.no_responders
            self._injector.traces.end(item.trace, code=error.reason, problem=error.message)


@contextlib.asynccontextmanager
async def _place(places: asyncio.Semaphore) -> AsyncIterator[None]:
    """One of the calls in work; Exhausted where none comes free for a while."""
    try:
        async with asyncio.timeout(PLACE_LIMIT_S):
            await places.acquire()
    except TimeoutError:
        raise Exhausted(
            "as many calls of many messages are in work as may be",
            reason="INJECTIONS_FULL",
            next_step="Try again with the same request ids",
            metadata={"retry_after_ms": "1000"},
        ) from None
    try:
        yield
    finally:
        places.release()


@dataclass(slots=True)
class _Answers:
    """Ends `complete` when none is missing."""

    complete: asyncio.Future[None]
    missing: int = 0

    def tell(self, item: _Item, answer: Stored | PublishRefused | PublishUnknown) -> None:
        item.answer = answer
        self.one_less()

    def one_less(self) -> None:
        self.missing -= 1
        if not self.missing and not self.complete.done():
            self.complete.set_result(None)


def _by_slot(items: Iterable[_Item]) -> list[list[_Item]]:
    found: dict[int, list[_Item]] = {}
    for item in items:
        found.setdefault(item.slot, []).append(item)
    return list(found.values())


def _dealt(items: Sequence[_Item]) -> list[Sequence[_Item]]:
    return [items[first::AT_ONCE] for first in range(min(AT_ONCE, len(items)))]


def _held_back() -> HeadraceError:
    return Unavailable(
        "a message before it, of the same slot, was not stored",
        reason="PRECEDING_REFUSED",
        next_step="Send both again, in their order",
    )


def _refuse(outcome: flow_pb2.InjectionOutcome, error: HeadraceError) -> None:
    after = error.metadata.get("retry_after_ms", "")
    outcome.refusal.reason, outcome.refusal.message = error.reason, str(error)
    if after.isdigit():
        outcome.refusal.retry_after_ms = max(1, int(after))
    elif isinstance(error, Unavailable):
        outcome.refusal.retry_after_ms = SOON_MS


def _check_bounds(messages: Sequence[flow_pb2.InjectedMessage]) -> None:
    size = sum(message.ByteSize() for message in messages)
    if not 0 < len(messages) <= MOST_MESSAGES or size > MOST_BYTES:
        raise InvalidInput.at(
            "messages",
            f"{len(messages)} messages of {size} bytes",
            f"are none, more than {MOST_MESSAGES}, or more than {MOST_BYTES} bytes",
            reason="BAD_BATCH",
            next_step="Send them in several calls; headrace inject --lines and the client's inject_many do",
        )
