"""The common way of a plain step's inputs and the long one do the same, whatever comes and whatever is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.api.component.v1.component_pb2 import Emit, End, Event, Failure
from headrace.edge.hop_recorder import HopRecorder
from headrace.edge.publish_each import publish_each
from headrace.model.deployment import DeploymentPlan, PinPlan, StepPlan
from headrace.model.flow_spec import RetryPolicy
from headrace.model.message_ids import execution_id, output_message_id
from headrace.ports import (
    ComponentInput,
    Delivery,
    EndedLot,
    Kept,
    LaneFull,
    PublishRefused,
    PublishUnknown,
    Stored,
)
from headrace.wire.envelope import Attachment, Envelope, ReplyTo, encode_shared, is_common, seal
from services.sidecar import input_path, outbox
from services.sidecar.data_plane import DataPlane
from services.sidecar.plain_rows import PlainRows

FULL = PublishRefused(10077, "maximum messages per subject exceeded")
ANSWERS = {"stored": Stored(1, False), "duplicate": Stored(1, True), "full": FULL, "silent": PublishUnknown("silent")}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
extras = st.fixed_dictionaries(
    {},
    optional={
        "headers": st.dictionaries(texts, texts, max_size=2),
        "reply_to": st.builds(ReplyTo, subject=texts, answer_key=texts),
        "incarnation": st.integers(0, 300),
        "baggage": texts,
        "in_doubt": st.booleans(),
        "content_type": texts,
        "body": st.binary(max_size=200),
        "parent_id": texts,
        "sender": texts,
        "input_stored_at_unix_ns": st.integers(0, 2**63),
        "attachments": st.lists(st.builds(Attachment, id=texts), max_size=1),
    },
)
emits = st.builds(
    dict,
    body=st.binary(max_size=40),
    content_type=st.sampled_from(["", "text/plain"]),
    headers=st.just({}) | st.dictionaries(texts, texts, max_size=1),
    key=st.sampled_from(["", "", "", "k"]),
)
messages = st.tuples(
    extras | st.just({}),
    st.lists(emits, max_size=2),
    st.sampled_from(["end", "end", "end", "fail"]),
    st.sampled_from([1, 1, 1, 1, 2]),
    st.lists(st.sampled_from([*sorted(ANSWERS), "no room"]), max_size=2),
)
Message = tuple[dict[str, Any], list[dict[str, Any]], str, int, list[str]]


@given(extras, st.integers(0, 2**63))
def test_what_is_called_common_has_nothing_uncommon(fields: dict[str, Any], sent_at: int) -> None:
    given_fields = {"execution_id": "e" * 32, "parent_id": "p" * 32, "body": b"", **fields}
    raw = seal(encode_shared(**given_fields), "i" * 32, sent_at)
    envelope = Envelope.FromString(raw)
    common = is_common(envelope, len(raw), envelope.id, envelope.execution_id)
    names = {"id", "execution_id", "parent_id", "body", "content_type", "sender"}
    names |= {"sent_at_unix_ns", "input_stored_at_unix_ns"}
    plain = {field.name for field, _ in envelope.ListFields()} <= names
    assert plain or not common
    if plain and all(len(text.encode()) == len(text) for text in fields.values() if isinstance(text, str)):
        # An empty ReplyTo is a field that is there; its bytes of sent_at may be none.
        assert common == (sum(1 for _ in envelope.ListFields()) > 0 and _written_as_short(raw, envelope))


def _written_as_short(raw: bytes, envelope: Envelope) -> bool:
    """No field is written that says nothing."""
    return len(raw) == envelope.ByteSize()


class ScriptedLane:
    """Answers each publish of an input as its script says, then stores; writes down all that reaches the broker."""

    outstanding = 0
    problem = ""

    def __init__(self) -> None:
        self.script: dict[str, list[str]] = {}
        self.stored: list[tuple[str, bytes, str, str]] = []
        self.acknowledged: list[int] = []
        self.deliver: Callable[[list[Delivery]], None] = lambda deliveries: None
        self._loop = asyncio.get_running_loop()

    def consume(self, stream: str, consumer: str, *, credit: int, on_deliveries: Any) -> ScriptedLane:
        self.deliver = on_deliveries
        return self

    def release(self, count: int = 1) -> None:
        pass

    async def stop(self) -> None:
        pass

    def when_down(self, callback: Any) -> None:
        pass

    def extend(self, delivery: Delivery) -> None:
        pass

    async def last_message(self, *_: Any, **__: Any) -> Kept | None:
        return None

    async def flush(self, timeout_s: float = 2.0) -> None:
        pass

    def send(self, subject: str, payload: bytes, **_: Any) -> None:
        self.stored.append((subject, b"", "", ""))

    def publish_told(
        self,
        subject: str,
        payload: bytes,
        tell: Any,
        about: Any,
        *,
        message_id: str,
        traceparent: str = "",
        timeout_s: float = 5.0,
    ) -> None:
        envelope = Envelope.FromString(payload) if ".two." in subject else Envelope()
        script = self.script.get(envelope.parent_id) or ["stored"]
        word = script.pop(0)
        if word == "no room":
            raise LaneFull("so much waits")
        answer = ANSWERS[word]
        if isinstance(answer, Stored):
            envelope.ClearField("sent_at_unix_ns")
            self.stored.append((subject, envelope.SerializeToString(deterministic=True), message_id, traceparent))
        self._loop.call_soon(tell, about, answer)

    def publish_rows(self, subject: str, rows: Any, tell: Any, stored: Any, **options: Any) -> int:
        def told(about: Any, answer: Any) -> None:
            if type(answer) is Stored and not answer.duplicate:
                stored([about])
            else:
                tell(about, answer)

        return publish_each(self, subject, rows, told, **options)

    def acknowledge_told(self, delivery: Delivery, tell: Any, about: Any) -> None:
        self.acknowledged.append(delivery.stream_sequence)
        self._loop.call_soon(tell, about, None)


class ScriptedStream:
    """Takes calls, and answers those that have an answer."""

    def __init__(self) -> None:
        self.given: list[ComponentInput] = []

    def send(self, inputs: Sequence[ComponentInput]) -> None:
        self.given += inputs

    def take_lots(self, on_ended: Callable[[EndedLot], None]) -> None:
        pass


def _plan() -> DeploymentPlan:
    pin = PinPlan("relay", 1, "sha256:" + "0" * 64, "", "", "")
    retry = RetryPolicy(attempts=2, backoff_s=0.0005)
    steps = tuple(
        StepPlan(name, "action" if index else "trigger", "relay", pin, {}, to, 256, 60.0, retry)
        for index, (name, to) in enumerate((("start", ("one",)), ("one", ("two",)), ("two", ())))
    )
    return DeploymentPlan("default", "rows", "realtime", 1, 1, "start", steps, 1_000_000, 0.0, parking_epoch=0)


def _delivery(number: int, fields: dict[str, Any], attempt: int) -> tuple[str, Delivery]:
    message_id = output_message_id(str(number), "start", "0", "one")
    common = {"execution_id": execution_id(str(number)), "parent_id": "p" * 32, "body": b"b", "sender": "start"}
    raw = seal(encode_shared(**{**common, **fields}), message_id, 7)
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    return message_id, Delivery("in", raw, message_id, trace, number, attempt, 5, 6, 6, b"", number)


async def _run(batch: list[Message], step: str) -> tuple[list[Any], list[int], dict[str, int]]:
    plan, lane, stream = _plan(), ScriptedLane(), ScriptedStream()
    plans: Any = SimpleNamespace(retired=False, state=None, ask_again=lambda: None)
    async with asyncio.TaskGroup() as tasks:
        plane = DataPlane(
            plan,
            plan.step(step),
            cast(Any, lane),
            plans,
            tasks,
            recorder=HopRecorder("rows", 1, step),
            restart_consumer=cast(Any, None),
            attachments=cast(Any, None),
            broker_since=lambda: 0.0,
            answers=lambda: None,
            on_finished=lambda: None,
            on_occupancy=lambda: None,
            end_component=lambda reason, cause: None,
            answer_limit_s=3.0,
            on_leases=lambda: None,
        )
        plane.component_ready(cast(Any, SimpleNamespace(carries_bytes=False)), cast(Any, stream))
        plane.activate()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        deliveries = []
        how = {}
        for number, (fields, outputs, ending, attempt, answers) in enumerate(batch, 1):
            message_id, delivery = _delivery(number, fields, attempt)
            deliveries.append(delivery)
            how[message_id] = (outputs, ending)
            lane.script[message_id] = [*answers, "stored"]
        lane.deliver(deliveries)
        async with asyncio.timeout(5):
            while plane.held:
                given, stream.given = stream.given, []
                in_lots: list[tuple[int, list[dict[str, Any]]]] = []
                events: list[Event] = []
                for item in given:
                    outputs, ending = how[item.message_id]
                    if item.bare and _fits_a_lot(outputs, ending):
                        in_lots.append((item.call, outputs))
                    else:
                        events += _events(item, outputs, ending)
                for lot in _lots(in_lots):
                    plane.loop.on_ended(lot)
                plane.loop.on_events(events)
                await asyncio.sleep(0.001)  # tidy: pace
        counters = {name: count for name, count in plane.counters.items() if count}
        await plane.finish(0.0)
    return sorted(lane.stored), sorted(lane.acknowledged), counters


def _lots(calls: list[tuple[int, list[dict[str, Any]]]]) -> list[EndedLot]:
    """By media type."""
    found = [EndedLot([call], None, "", [10], [20]) for call, outputs in calls if not outputs]
    for content_type in ("", "text/plain"):
        mine = [(call, emits[0]["body"]) for call, emits in calls if emits and emits[0]["content_type"] == content_type]
        if mine:
            times = [10] * len(mine), [20] * len(mine)
            found.append(EndedLot([call for call, _ in mine], [body for _, body in mine], content_type, *times))
    return found


def _fits_a_lot(outputs: list[dict[str, Any]], ending: str) -> bool:
    return ending == "end" and len(outputs) < 2 and not any(emit["headers"] or emit["key"] for emit in outputs)


def _events(item: ComponentInput, outputs: list[dict[str, Any]], ending: str) -> list[Event]:
    found = [Event(call=item.call, data=Emit(**emit)) for emit in outputs]
    if ending == "fail" and item.attempt == 1:
        found.append(Event(call=item.call, error=Failure(code="OH", message="oh", retryable=True)))
    found.append(Event(call=item.call, end=End(started_at_mono_ns=10, ended_at_mono_ns=20)))
    return found


@pytest.mark.parametrize("step", ["one", "two"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(messages, min_size=1, max_size=6))
def test_the_common_way_does_what_the_long_one_does(
    batch: list[Message], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(outbox, "jittered", lambda delay_s, chance: 0.0005)
        short = asyncio.run(_run(batch, step))
        patched.setattr(input_path, "is_common", lambda *_: False)
        patched.setattr(PlainRows, "deliver", lambda self, rows: rows)
        long = asyncio.run(_run(batch, step))
    assert short == long
