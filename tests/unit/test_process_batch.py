"""Functions that take batches: each message ends for itself, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from headrace.api.component.v1 import component_pb2 as pb
from headrace.sdk import Component, ComponentError, Context, DefinitionError, Rebound, StepIdentity, batched_calls
from headrace.sdk.context import StepScope
from headrace.sdk.log import ComponentLog
from headrace.sdk.process_stream import EOF, ProcessStream
from headrace.sdk.testing import ComponentHarness
from tests.support.eventually import eventually


class Wire:
    """The sidecar's end of a stream, in memory."""

    def __init__(self) -> None:
        self._frames: asyncio.Queue[Any] = asyncio.Queue()
        self.events: list[Any] = []

    def send(self, *inputs: pb.Input) -> None:
        self._frames.put_nowait(pb.ProcessRequest(inputs=inputs))

    async def read(self) -> Any:
        return await self._frames.get()

    async def write(self, frame: Any) -> None:
        self.events.extend(pb.ProcessResponse.FromString(frame.SerializeToString()).events)

    def end(self) -> None:
        self._frames.put_nowait(EOF)

    def of(self, call: int) -> list[str]:
        """What came of a call, in order: kinds, with bodies and codes."""
        found = []
        for event in self.events:
            if event.call == call:
                kind = event.WhichOneof("kind")
                text = {"data": lambda e: e.data.body.decode(), "error": lambda e: e.error.code}.get(kind)
                found.append(f"{kind} {text(event)}" if text else kind)
        return found

    def ended(self, *calls: int) -> Callable[[], bool]:
        return lambda: all(self.of(call)[-1:] == ["end"] for call in calls)


def inputs(*bodies: str, first: int = 1, **fields: Any) -> list[pb.Input]:
    return [
        pb.Input(call=call, body=body.encode(), message_id=f"m{call}", attempt=fields.get("attempt", 1), **{
            name: value for name, value in fields.items() if name != "attempt"
        })
        for call, body in enumerate(bodies, first)
    ]  # fmt: skip


@asynccontextmanager
async def stream_of(component: Component) -> AsyncIterator[Wire]:
    component.resolve()
    scope = StepScope({}, StepIdentity(), asyncio.Event(), ComponentLog(lambda line: None))
    wire = Wire()
    stream = ProcessStream(component.function(""), scope, wire)
    task = asyncio.create_task(stream.run())
    yield wire
    wire.end()
    async with asyncio.timeout(10):
        await task


class Notes:
    """A component that notes its batches, and does what the texts say."""

    def __init__(self, **options: Any) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.component = component = Component()

        @component.process_batch(**options)
        async def write(texts: list[str], contexts: list[Context]) -> list[str | Exception | None]:
            self.batches.append(texts)
            for text, ctx in zip(texts, contexts, strict=True):
                if text == "wait":
                    await self.gate.wait()
                if text == "poison":
                    raise RuntimeError("cannot")
                await ctx.emit(f"{text}!")
            return [self._result(text) for text in texts]

    def _result(self, text: str) -> str | Exception | None:
        return {"refuse": ComponentError("REFUSED"), "later": Rebound("later")}.get(text, text)


async def test_what_waits_is_the_next_batch_up_to_its_limit() -> None:
    notes = Notes(max=3)
    async with stream_of(notes.component) as wire:
        wire.send(*inputs("wait"))
        await eventually(lambda: notes.batches == [["wait"]])
        wire.send(*inputs("a", "b", first=2))
        wire.send(*inputs("c", "d", first=4))
        await asyncio.sleep(0)  # tidy: pace
        notes.gate.set()
        await eventually(wire.ended(1, 2, 3, 4, 5))
    assert notes.batches == [["wait"], ["a", "b", "c"], ["d"]]
    assert wire.of(3) == ["data b!", "data b", "end"]


async def test_every_message_of_a_batch_ends_for_itself() -> None:
    notes = Notes()
    async with stream_of(notes.component) as wire:
        wire.send(*inputs("a", "refuse", "later", "b"))
        await eventually(wire.ended(1, 2, 3, 4))
    assert notes.batches == [["a", "refuse", "later", "b"]]
    assert [wire.of(call) for call in (1, 2, 3, 4)] == [
        ["data a!", "data a", "end"],
        ["data refuse!", "error REFUSED", "end"],
        ["data later!", "rebound", "end"],
        ["data b!", "data b", "end"],
    ]


async def test_a_failed_batch_is_called_one_by_one_and_only_the_poison_fails() -> None:
    notes = Notes()
    async with stream_of(notes.component) as wire:
        wire.send(*inputs("a", "poison", "b"))
        await eventually(wire.ended(1, 2, 3))
    assert notes.batches == [["a", "poison", "b"], ["a"], ["poison"], ["b"]]
    assert wire.of(1) == ["data a!", "data a", "end"]  # what it emitted in the batch that failed is forgotten
    assert wire.of(2) == ["error COMPONENT_ERROR", "end"]
    assert wire.of(3) == ["data b!", "data b", "end"]


async def test_a_batch_that_hangs_is_given_up_and_what_was_tried_before_goes_alone_and_beside() -> None:
    notes = Notes()
    async with stream_of(notes.component) as wire:
        wire.send(*inputs("a", "wait", timeout_ms=80))
        await eventually(lambda: bool(notes.batches))
        wire.send(*inputs("a", "b", first=3, attempt=2, timeout_ms=80))
        await eventually(wire.ended(3, 4))
        assert wire.of(1) == []
        await eventually(wire.ended(1, 2))
    assert notes.batches == [["a", "wait"], ["a"], ["b"]]
    assert wire.of(1)[-2:] == wire.of(2)[-2:] == ["error TIMEOUT", "end"]
    assert wire.of(3) == ["data a!", "data a", "end"]


async def test_who_waits_too_long_begins_beside_the_batch_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched_calls, "LONGEST_PATIENCE_S", 0.02)
    notes = Notes()
    async with stream_of(notes.component) as wire:
        wire.send(*inputs("wait"))
        await eventually(lambda: notes.batches == [["wait"]])
        wire.send(*inputs("a", "b", first=2))
        await eventually(wire.ended(2, 3))
        assert wire.of(1) == []
        wire.send(*inputs("c", first=4))
        await eventually(wire.ended(4))
        notes.gate.set()
        await eventually(wire.ended(1))


async def test_a_plain_function_gets_a_thread_a_batch() -> None:
    component, threads = Component(), list[tuple[str, int]]()

    @component.process_batch
    def write(numbers: list[int], contexts: list[Context]) -> list[int]:
        threads.append((threading.current_thread().name, len(numbers)))
        time.sleep(0.001)  # tidy: pace
        for number, ctx in zip(numbers, contexts, strict=True):
            if number == 3:
                raise SystemExit(1)
            ctx.emit(number)
        return numbers

    async with stream_of(component) as wire:
        wire.send(*inputs("1", "2", "no number"))
        await eventually(wire.ended(1, 2, 3))
        wire.send(*inputs("3", "4", first=4))
        await eventually(wire.ended(4, 5))
    assert [size for _, size in threads] == [2, 2, 1, 1]
    assert all(name.startswith("headrace-batch") for name, _ in threads)
    assert wire.of(1) == ["data 1", "data 1", "end"]
    assert wire.of(3) == ["error BAD_INPUT", "end"]
    assert wire.of(4) == ["error COMPONENT_ERROR", "end"]
    assert wire.of(5) == ["data 4", "data 4", "end"]


async def test_a_stream_that_breaks_cancels_the_batch() -> None:
    notes = Notes()
    notes.component.resolve()
    scope = StepScope({}, StepIdentity(), asyncio.Event(), ComponentLog(lambda line: None))
    wire = Wire()
    stream = ProcessStream(notes.component.function(""), scope, wire)
    task = asyncio.create_task(stream.run())
    wire.send(*inputs("wait", "a"))
    await eventually(lambda: bool(notes.batches))
    assert [call.context.call for call in stream.waiting] == [1]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert wire.events == []


class Row(msgspec.Struct):
    sku: str
    amount: int


async def test_the_harness_calls_a_batch_and_tells_each_message_apart() -> None:
    component = Component()

    @component.process_batch(max=3)
    async def insert(rows: list[Row], contexts: list[Context]) -> list[dict[str, int] | ComponentError]:
        for row, ctx in zip(rows, contexts, strict=True):
            ctx.log.info("row", sku=row.sku)
            await ctx.reply(row.sku)
        return [{"amount": row.amount} if row.amount else ComponentError("EMPTY") for row in rows]

    async with ComponentHarness(component) as harness:
        rows = [{"sku": "a", "amount": 1}, {"sku": "b", "amount": 0}, {"sku": 7}]
        good, empty, unreadable = await harness.call_batch("insert", rows)
        assert good.value == {"amount": 1}
        assert [line["fields"]["sku"] for line in good.logs] == ["a"]
        assert good.reply is not None
        assert good.reply.body == b"a"
        assert empty.error is not None
        assert empty.error.code == "EMPTY"
        assert unreadable.error is not None
        assert unreadable.error.code == "BAD_INPUT"
        assert (await harness.call("insert", rows[0])).value == {"amount": 1}
        with pytest.raises(DefinitionError, match="at most 3"):
            await harness.call_batch("insert", rows * 2)
    function = component.function("insert")
    assert function.in_schema is not None
    assert "Row" in function.in_schema["$defs"]
    assert function.out_schema == {"type": "object", "additionalProperties": {"type": "integer"}}


async def test_an_answer_that_does_not_fit_the_batch_fails_each() -> None:
    component = Component()

    @component.process_batch
    async def count(texts: list[str]) -> list[int]:
        return [1, 2]

    async with ComponentHarness(component) as harness:
        found = await harness.call_batch("count", ["a", "b", "c"])
        assert {result.error.message for result in found if result.error} == {
            "TypeError: the function answered 2 entries for 1 messages: return None, or a list with an entry for each"
        }


def both_ways() -> Component:
    component = Component()

    @component.action(name="insert")
    async def one(row: Row) -> None: ...

    @component.process_batch(name="insert")
    async def many(rows: list[Row]) -> None: ...

    return component


def batching_trigger() -> Component:
    component = Component()

    @component.trigger
    @component.process_batch
    async def start(rows: list[Row]) -> None: ...

    return component


def one_context() -> Component:
    component = Component()

    @component.process_batch
    async def insert(rows: list[Row], ctx: Context) -> None: ...

    return component


def no_list() -> Component:
    component = Component()

    @component.process_batch
    async def insert(row: Row) -> None: ...

    return component


def answers_one() -> Component:
    component = Component()

    @component.process_batch
    async def insert(rows: list[Row]) -> Row: ...  # type: ignore[empty-body]

    return component


def nothing_a_call() -> Component:
    component = Component()
    component.process_batch(max=0)(lambda rows: None)
    return component


@pytest.mark.parametrize(
    ("define", "words"),
    [
        (both_ways, "declared by @component.action and by @component.process_batch"),
        (batching_trigger, "is a trigger and has process_batch: only an action gets batches"),
        (one_context, r"a batch has a Context for each message: list\[Context\]"),
        (no_list, "a batch comes as a list"),
        (answers_one, "a list"),
        (nothing_a_call, "use letters|use 1 to 1000"),
    ],
)
def test_what_does_not_fit_is_told_when_it_is_loaded(define: Callable[[], Component], words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        define().resolve()
