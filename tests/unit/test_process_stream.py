"""The Process stream under every mix of calls: each is answered, once, and holds up no other."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.api.component.v1 import component_pb2 as pb
from headrace.edge.component_frames import ended_lot, events_of
from headrace.sdk import Component, ComponentError, Context, Rebound, StepIdentity, process_stream
from headrace.sdk.context import StepScope
from headrace.sdk.log import ComponentLog
from headrace.sdk.process_stream import EOF, ProcessStream
from tests.support.eventually import eventually


class Wire:
    """The sidecar's end of a stream, in memory; a write takes a turn of the loop, as a real one does."""

    def __init__(self, *, lots: bool = False) -> None:
        self._lots = lots
        self._frames: asyncio.Queue[Any] = asyncio.Queue()
        self.events: list[Any] = []
        self.frames = 0
        self.writing = 0

    def send(self, *bodies: Any) -> None:
        inputs = [pb.Input(call=call, body=json.dumps(body).encode()) for call, body in bodies]
        request = pb.ProcessRequest(inputs=inputs)
        if self._lots and inputs:
            # All but the first in the lot.
            del request.inputs[1:]
            lot, ids = request.lot, ["i"] * (len(inputs) - 1)
            lot.calls.extend(item.call for item in inputs[1:])
            lot.bodies.extend(item.body for item in inputs[1:])
            for texts in (lot.message_ids, lot.execution_ids, lot.traceparents):
                texts.extend(ids)
        self._frames.put_nowait(request)

    def end(self) -> None:
        self._frames.put_nowait(EOF)

    async def read(self) -> Any:
        return await self._frames.get()

    async def write(self, frame: Any) -> None:
        assert self.writing == 0, "two writes at once"
        self.writing += 1
        await asyncio.sleep(0)  # tidy: pace
        self.writing -= 1
        self.frames += 1
        response = pb.ProcessResponse.FromString(frame.SerializeToString())
        for ended in response.ended:
            lot = ended_lot(ended)
            assert lot is not None
            self.events.extend(events_of(lot))
        self.events.extend(response.events)


component = Component()


@component.action
async def act(todo: list[str], ctx: Context) -> str | None:
    for verb in todo:
        await do(verb, ctx)
    return None


@component.action
def act_plainly(todo: list[str], ctx: Context) -> None:
    for verb in todo:
        match verb:
            case "emit" | "turn" | "background":
                ctx.emit({"v": verb})
            case "wait":
                time.sleep(0.001)  # tidy: pace
            case _:
                fail(verb)


@component.process_batch(max=4)
async def act_together(todos: list[list[str]], contexts: list[Context]) -> list[BaseException | None]:
    results: list[BaseException | None] = []
    for todo, ctx in zip(todos, contexts, strict=True):
        try:
            results.append(await act(todo, ctx))
        except (Exception, SystemExit) as error:
            results.append(error)
    return results


async def do(verb: str, ctx: Context) -> None:
    match verb:
        case "emit":
            await ctx.emit({"v": verb})
        case "turn":
            await asyncio.sleep(0)  # tidy: pace
            await ctx.emit({"v": verb})
        case "wait":
            await asyncio.sleep(0.001)  # tidy: pace
        case "background":
            asyncio.get_running_loop().call_soon(ctx.emit, {"v": verb})
        case "cancel":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        case _:
            fail(verb)


def fail(verb: str) -> None:
    match verb:
        case "fail":
            raise ComponentError("NO")
        case "crash":
            raise SystemExit(1)
        case "rebound":
            raise Rebound("later")


VERBS = ["emit", "emit", "turn", "wait", "background", "fail", "crash", "rebound", "cancel"]
FRAMES = st.lists(st.lists(st.lists(st.sampled_from(VERBS), max_size=4), max_size=6), max_size=5)


async def run_stream(
    function: str, frames: list[list[list[str]]], *, lots: bool = False
) -> tuple[Wire, dict[int, list[str]]]:
    component.resolve()
    scope = StepScope({}, StepIdentity(), asyncio.Event(), ComponentLog(lambda line: None))
    wire = Wire(lots=lots)
    calls: dict[int, list[str]] = {}
    for frame in frames:
        numbered = [(len(calls) + offset, todo) for offset, todo in enumerate(frame)]
        calls.update(numbered)
        wire.send(*numbered)
    wire.end()
    async with asyncio.timeout(10):
        await ProcessStream(component.function(function), scope, wire).run()
    return wire, calls


@pytest.mark.parametrize("function", ["act", "act_plainly", "act_together"])
@settings(max_examples=60, deadline=None)
@given(frames=FRAMES, lots=st.booleans())
def test_every_call_ends_once(function: str, frames: list[list[list[str]]], lots: bool) -> None:
    wire, calls = asyncio.run(run_stream(function, frames, lots=lots))
    ends = Counter(event.call for event in wire.events if event.HasField("end"))
    assert ends == Counter(dict.fromkeys(calls, 1))
    for call, todo in calls.items():
        mine = [event.WhichOneof("kind") for event in wire.events if event.call == call]
        stop = next((verb for verb in todo if verb in ("fail", "crash", "rebound")), None)
        if "background" not in todo:
            assert mine[-1] == "end"
        if "cancel" not in todo:
            done = todo[: todo.index(stop)] if stop else todo
            assert mine.count("data") == sum(verb in ("emit", "turn", "background") for verb in done)
            assert mine.count("error") == (stop in ("fail", "crash"))
            assert mine.count("rebound") == (stop == "rebound")


async def test_a_turns_answers_share_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    # Answers leave early when a turn takes long, as it does where the machine gives us no time.
    monkeypatch.setattr(process_stream, "LONG_TURN_NS", 10**10)
    wire, _ = await run_stream("act", [[["emit"]] * 100])
    assert wire.frames == 1
    wire, _ = await run_stream("act", [[["turn"]] * 100])
    assert wire.frames <= 3


@pytest.mark.parametrize("count", [2, 3, 40])
async def test_what_calls_return_comes_field_by_field_and_late_emits_after_it(count: int) -> None:
    one = Component()

    @one.action
    async def late(todo: Any, ctx: Context) -> Any:
        if todo == "late":
            asyncio.get_running_loop().call_soon(ctx.emit, "late")
        return todo or None

    one.resolve()
    scope = StepScope({}, StepIdentity(), asyncio.Event(), ComponentLog(lambda line: None))
    wire = Wire(lots=True)
    wire.send((0, ""), *((call, ["", "late", "x", "Δ"][call % 4]) for call in range(1, count)))
    wire.end()
    async with asyncio.timeout(10):
        await ProcessStream(one.function("late"), scope, wire).run()
    for call in range(count):
        mine = [event for event in wire.events if event.call == call]
        said = [event.data.body.decode() if event.HasField("data") else "end" for event in mine]
        assert said == [["end"], ["late", "end", "late"], ["x", "end"], ["Δ", "end"]][call % 4]
        assert all(event.data.content_type.startswith("text/plain") for event in mine if event.HasField("data"))


async def test_a_closed_stream_refuses_late_emits() -> None:
    kept: list[Context] = []
    keeping = Component()

    @keeping.action
    async def keep(_: list[str], ctx: Context) -> None:
        kept.append(ctx)

    keeping.resolve()
    scope = StepScope({}, StepIdentity(), asyncio.Event(), ComponentLog(lambda line: None))
    wire = Wire()
    wire.send((1, []))
    wire.end()
    await ProcessStream(keeping.function("keep"), scope, wire).run()
    with pytest.raises(ConnectionError):
        await kept[0].emit({})


async def test_a_plain_call_that_blocks_does_not_hold_up_a_later_one() -> None:
    entered, released = threading.Event(), threading.Event()
    blocking = Component()

    @blocking.action
    def act(todo: list[str], ctx: Context) -> None:
        if todo == ["block"]:
            entered.set()
            released.wait(10)

    blocking.resolve()
    scope = StepScope({}, StepIdentity(), asyncio.Event(), ComponentLog(lambda line: None))
    wire = Wire()
    running = asyncio.ensure_future(ProcessStream(blocking.function("act"), scope, wire).run())
    try:
        wire.send((1, ["block"]))
        await eventually(entered.is_set)
        wire.send((2, []))
        await eventually(lambda: [event.call for event in wire.events if event.HasField("end")] == [2], within_s=5)
    finally:
        released.set()
    wire.end()
    async with asyncio.timeout(5):
        await running
    assert {event.call for event in wire.events} == {1, 2}
