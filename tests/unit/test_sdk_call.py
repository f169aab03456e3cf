"""How calls of functions end: what a sidecar would see of each."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import time
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import msgspec
import pytest

from headrace.model.limits import MAX_OUTPUTS
from headrace.sdk import Component, ComponentError, Context, DefinitionError, Rebound, current_context
from headrace.sdk.testing import CallResult, ComponentHarness, Failure


class Line(msgspec.Struct):
    sku: str
    quantity: Annotated[int, msgspec.Meta(ge=1)]


@dataclass
class Point:
    x: int


class Named(TypedDict):
    name: str


async def call(function: Any, value: Any = b"", **options: Any) -> CallResult:
    component = Component()
    component.action(name="f")(function)
    async with ComponentHarness(component) as harness:
        return await harness.call("f", value, **options)


async def test_async_function_returns_one_message() -> None:
    async def double(line: Line, ctx: Context) -> Line:
        return Line(line.sku, line.quantity * 2)

    result = await call(double, {"sku": "A", "quantity": 2})
    assert result.value == {"sku": "A", "quantity": 4}
    assert result.outputs[0].content_type == "application/json"
    assert result.error is None
    assert result.reply is None


async def test_plain_function_runs_in_a_thread_and_emits_without_await() -> None:
    def plain(ctx: Context, line: Line) -> None:
        time.sleep(0.001)  # tidy: pace
        ctx.emit({"n": 1})
        ctx.reply("fine", status=201, headers={"x-a": "b"})

    result = await call(plain, {"sku": "A", "quantity": 2})
    assert result.value == {"n": 1}
    assert result.reply is not None
    assert (result.reply.status, result.reply.value, result.reply.headers) == (201, "fine", {"x-a": "b"})


@pytest.mark.parametrize(
    ("kind", "body", "seen"),
    [
        (dict, {"a": 1}, {"a": 1}),
        (Any, [1], [1]),
        (bytes, b"\x00\xff", b"\x00\xff"),
        (str, "żółć", "żółć"),
        (Point, {"x": 3}, Point(3)),
        (Named, {"name": "n"}, {"name": "n"}),
        (int, 5, 5),
    ],
)
async def test_input_types(kind: Any, body: Any, seen: Any) -> None:
    got = []

    async def take(value: Any) -> None:
        got.append(value)

    take.__annotations__["value"] = kind
    result = await call(take, body)
    assert result.error is None
    assert got == [seen]
    assert result.outputs == []


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"sku": "A", "quantity": "2"}, "$.quantity"),
        ({"sku": "A", "quantity": 0}, "$.quantity"),
        ({"quantity": 1}, "sku"),
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
    ],
)
async def test_input_that_does_not_fit_is_a_bad_input_naming_the_field(body: Any, names: str) -> None:
    async def take(line: Line) -> None:
        raise AssertionError("not reached")

    error = (await call(take, body)).error
    assert error is not None
    assert (error.code, error.status, error.retryable) == ("BAD_INPUT", 400, False)
    assert names in error.message


async def test_bottomless_json_is_a_bad_input() -> None:
    async def take(value: dict[str, Any]) -> None: ...

    error = (await call(take, b'{"a":' * 100_000)).error
    assert error is not None
    assert error.code == "BAD_INPUT"


async def test_text_that_is_not_utf8_is_a_bad_input() -> None:
    async def take(text: str) -> None: ...

    error = (await call(take, b"\xff\xfe")).error
    assert error is not None
    assert error.code == "BAD_INPUT"


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("raised", "failure"),
    [
        (
            ComponentError("UNKNOWN_SKU", "no B", status=422),
            Failure("UNKNOWN_SKU", "no B", 422, False),
        ),
        (ComponentError("BUSY", retryable=True), Failure("BUSY", "BUSY", 0, True)),
        (ValueError("bad \ud800 text"), Failure("COMPONENT_ERROR", "ValueError: bad ? text", 0, True)),
        (SystemExit(4), Failure("COMPONENT_ERROR", "SystemExit: 4", 0, True)),
        (KeyboardInterrupt(), Failure("COMPONENT_ERROR", "KeyboardInterrupt: ", 0, True)),
        (asyncio.CancelledError(), Failure("COMPONENT_ERROR", "CancelledError: ", 0, True)),
    ],
)
@pytest.mark.parametrize("how", ["at once", "after waiting", "in a thread"])
async def test_what_is_raised_becomes_the_failure_of_that_call_only(
    raised: BaseException, failure: Failure, how: str
) -> None:
    async def at_once(_: bytes) -> None:
        raise raised

    async def after_waiting(_: bytes) -> None:
        await asyncio.sleep(0)  # tidy: pace
        raise raised

    def in_a_thread(_: bytes) -> None:
        raise raised

    chosen = {"at once": at_once, "after waiting": after_waiting, "in a thread": in_a_thread}[how]
    result = await call(chosen)
    assert result.error == failure
    traced = [line for line in result.logs if "traceback" in line]
    assert bool(traced) == (failure.code == "COMPONENT_ERROR")
    assert "Traceback" not in failure.message


async def test_an_error_without_text_is_still_an_error() -> None:
    async def fails(_: bytes) -> None:
        raise Unspeakable

    error = (await call(fails)).error
    assert error is not None
    assert error.message.startswith("Unspeakable: ")


async def test_a_decorated_async_function_stays_async() -> None:
    async def plain(line: Line, ctx: Context) -> str:
        await asyncio.sleep(0)  # tidy: pace
        return line.sku

    @functools.wraps(plain)
    def decorated(*arguments: Any) -> Any:
        return plain(*arguments)

    assert (await call(decorated, {"sku": "A", "quantity": 1})).value == "A"


async def test_rebound() -> None:
    async def later(_: bytes) -> None:
        raise Rebound("not yet", delay_s=1.5)

    result = await call(later)
    assert result.rebound is not None
    assert (result.rebound.reason, result.rebound.delay_s, result.error) == ("not yet", 1.5, None)


@pytest.mark.parametrize("value", [object(), {1: object()}, float, "\ud800"])
async def test_an_output_that_cannot_be_sent_is_refused_for_good(value: Any) -> None:
    async def bad(_: bytes) -> Any:
        return value

    result = await call(bad)
    assert result.error is not None
    assert (result.error.code, result.error.retryable) == ("OUTPUT_REFUSED", False)
    assert result.outputs == []


async def test_headers_must_be_text() -> None:
    async def bad(_: bytes, ctx: Context) -> None:
        await ctx.emit({}, headers={"n": 1})  # type: ignore[dict-item]

    async def worse(_: bytes, ctx: Context) -> None:
        await ctx.emit({}, headers={"n": "\ud800"})

    for function in (bad, worse):
        result = await call(function)
        assert result.error is not None
        assert result.error.code == "OUTPUT_REFUSED"
        assert result.outputs == []


async def test_outputs_of_one_input_are_bounded() -> None:
    async def many(_: bytes, ctx: Context) -> None:
        for n in range(MAX_OUTPUTS + 1):
            await ctx.emit(n)

    error = (await call(many)).error
    assert error is not None
    assert error.code == "OUTPUT_REFUSED"


async def test_emits_keep_order_headers_keys_and_content_type() -> None:
    async def three(_: bytes, ctx: Context) -> dict[str, int]:
        await ctx.emit(b"raw", headers={"a": "1"}, content_type="image/png")
        await ctx.emit("text", key="k1")
        await asyncio.sleep(0)  # tidy: pace
        return {"last": 3}

    outputs = (await call(three)).outputs
    assert [(o.value, o.content_type, o.headers, o.key) for o in outputs] == [
        (b"raw", "image/png", {"a": "1"}, ""),
        ("text", "text/plain; charset=utf-8", {}, "k1"),
        ({"last": 3}, "application/json", {}, ""),
    ]


async def test_an_empty_body_is_a_message_too() -> None:
    async def empty(_: bytes, ctx: Context) -> bytes:
        await ctx.emit(b"", content_type="")
        return b""

    assert [output.body for output in (await call(empty)).outputs] == [b"", b""]


async def test_late_emit_after_the_function_returned() -> None:
    tasks = []

    async def late(_: bytes, ctx: Context) -> None:
        async def afterwards() -> None:
            await asyncio.sleep(0)  # tidy: pace
            await ctx.emit({"late": True})

        tasks.append(asyncio.create_task(afterwards()))

    result = await call(late)
    await asyncio.gather(*tasks)
    assert [output.value for output in result.outputs] == [{"late": True}]


async def test_timeouts_task_groups_and_the_current_task_work_from_the_first_step() -> None:
    async def modern(_: bytes) -> str:
        task = asyncio.current_task()
        async with asyncio.timeout(5):
            async with asyncio.TaskGroup() as group:
                child = group.create_task(asyncio.sleep(0, "child"))  # tidy: pace
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(5)  # tidy: pace
        assert asyncio.current_task() is task
        return child.result()

    assert (await call(modern)).value == "child"


async def test_a_call_past_its_limit_is_cancelled_and_retryable() -> None:
    cleaned = []

    async def slow(_: bytes) -> None:
        try:
            await asyncio.sleep(30)  # tidy: pace
        finally:
            cleaned.append(True)

    result = await call(slow, timeout_s=0.02)
    assert result.error == Failure("TIMEOUT", "the call took longer than its limit", 504, True)
    assert cleaned == [True]


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_each_call_has_its_own_context_variables() -> None:
    async def sets(value: str, ctx: Context) -> str:
        before = VARIABLE.get()
        token = VARIABLE.set(value)
        await asyncio.sleep(0)  # tidy: pace
        assert VARIABLE.get() == value
        assert current_context() is ctx
        VARIABLE.reset(token)
        return before

    component = Component()
    component.action(sets)
    async with ComponentHarness(component) as harness:
        results = await asyncio.gather(*(harness.call("sets", f"v{n}") for n in range(5)))
    assert [result.value for result in results] == ["unset"] * 5
    with pytest.raises(LookupError):
        current_context()


async def test_what_a_function_sees_of_its_message() -> None:
    async def look(_: bytes, ctx: Context) -> None:
        message = ctx.message
        ctx.log.info("seen", id=message.id, odd={1, 2}, cycle=object())
        await ctx.reply([message.id, message.execution_id, message.attempt, message.headers, message.content_type])

    result = await call(
        look, b"x", headers={"X-A": "1"}, content_type="a/b", attempt=3, message_id="m", execution_id="e"
    )
    assert result.reply is not None
    assert result.reply.value == ["m", "e", 3, {"x-a": "1"}, "a/b"]
    assert result.logs[0]["message"] == "seen"
    assert (result.logs[0]["execution_id"], result.logs[0]["message_id"]) == ("e", "m")


async def test_reply_status_is_checked() -> None:
    async def bad(_: bytes, ctx: Context) -> None:
        await ctx.reply({}, status=99)

    error = (await call(bad)).error
    assert error is not None
    assert error.code == "OUTPUT_REFUSED"


def test_wrong_definitions_are_found_when_loading() -> None:
    def resolve(function: Any, kind: str = "action") -> None:
        component = Component()
        getattr(component, kind)(function)
        component.resolve()

    async def generator(_: bytes) -> Any:
        yield 1

    async def too_many(a: dict[str, int], b: int) -> None: ...
    async def keyword(*, a: int) -> None: ...
    async def unknown(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037
    async def unsupported(a: type) -> None: ...
    async def no_context(a: int) -> None: ...

    for wrong in (generator, too_many, keyword, unknown, unsupported):
        with pytest.raises(DefinitionError):
            resolve(wrong)
    with pytest.raises(DefinitionError, match="listener"):
        resolve(no_context, "listener")
    with pytest.raises(DefinitionError, match="no function"):
        Component().resolve()
    twice = Component()
    twice.action(no_context)
    with pytest.raises(DefinitionError, match="two functions"):
        twice.action(no_context)
    with pytest.raises(ValueError, match="UNKNOWN_SKU"):
        ComponentError("unknown sku")
    with pytest.raises(ValueError, match="400"):
        ComponentError("A", status=200)
