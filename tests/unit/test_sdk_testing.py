"""The harnesses that component authors use."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.model.errors import InvalidInput
from headrace.sdk import Component, ComponentError, Context, DefinitionError, EmitRefused, Rebound
from headrace.sdk.testing import ComponentHarness, FlowHarness

MANIFEST = "name: {name}\nfunctions:\n  run: {{kind: action}}\n"


def write_component(folder: Path, code: str, **files: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "component.yaml").write_text(MANIFEST.format(name=folder.name))
    (folder / "component.py").write_text(code)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


NEIGHBOUR = """
from __future__ import annotations
import msgspec
from headrace.sdk import Component
import table
component = Component()
calls = []

@component.init
def init(config: dict):
    calls.append(config.get("start", 0))

@component.action
async def run(value: dict) -> list:
    import late
    calls.append(1)
    first = msgspec.json.decode(b'{"names": [{"name": "x"}]}', type=Names).names[0]
    return [table.NAME, late.NAME, len(calls), first.name]


class Names(msgspec.Struct):
    names: list[Name]


class Name(msgspec.Struct):
    name: str
"""


async def test_folders_with_the_same_module_names_do_not_meet(tmp_path: Path) -> None:
    one = write_component(tmp_path / "one", NEIGHBOUR, table="NAME = 'one'", late="NAME = 'late one'")
    two = write_component(tmp_path / "two", NEIGHBOUR, table="NAME = 'two'", late="NAME = 'late two'")
    async with ComponentHarness(one) as first, ComponentHarness(two) as second, ComponentHarness(one) as third:
        assert (await first.call("run", {})).value == ["one", "late one", 2, "x"]
        assert (await second.call("run", {})).value == ["two", "late two", 2, "x"]
        assert (await first.call("run", {})).value == ["one", "late one", 3, "x"]
        assert (await third.call("run", {})).value == ["one", "late one", 2, "x"]
    import sys

    assert not [name for name in sys.modules if name.endswith(("component", "table", "late")) and "headrace_" in name]
    assert not {"component", "table", "late"} & set(sys.modules)


async def test_packages_in_a_folder(tmp_path: Path) -> None:
    folder = write_component(
        tmp_path / "one",
        "from headrace.sdk import Component\nimport rules.tax\nfrom rules import RATE\nfrom rules.tax import due\n"
        "component = Component()\n@component.action\ndef run(value: int) -> list:\n"
        "    return [due(value), RATE, rules.tax.top.NAME]\n",
        top="NAME = 'top'",
    )
    (folder / "rules").mkdir()
    (folder / "rules" / "__init__.py").write_text("RATE = 2")
    (folder / "rules" / "tax.py").write_text("import top\nfrom . import RATE\ndef due(n): return n * RATE\n")
    async with ComponentHarness(folder) as harness:
        assert (await harness.call("run", 21)).value == [42, 2, "top"]
    (folder / "component.py").write_text("import nowhere_at_all")
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        await ComponentHarness(folder).start()
    (folder / "component.py").unlink()
    with pytest.raises(DefinitionError, match="no module 'component'"):
        await ComponentHarness(folder).start()


def test_blocking_face_hooks_and_logs() -> None:
    component = Component()
    seen: list[Any] = []

    @component.init
    async def init(config: dict[str, int], ctx: Context) -> None:
        seen.append(config["n"])
        ctx.log.info("ready")

    @component.action
    def run(value: int) -> int:
        return value + int(seen[0])

    @component.close
    def end() -> None:
        seen.append("end")

    with ComponentHarness(component, config={"n": 40}) as harness:
        assert harness.call("run", 2).value == 42
        assert harness.logs[0]["message"] == "ready"
    assert seen == [40, "end"]


async def test_typed_init_names_the_field() -> None:
    component = Component()

    @component.init
    def init(config: dict[str, int]) -> None: ...

    @component.action
    async def run(value: int) -> None: ...

    with pytest.raises(ValueError, match=r"config: .*\$"):
        await ComponentHarness(component, config={"n": "x"}).start()


async def test_a_hook_cannot_emit() -> None:
    component = Component()

    @component.init
    async def init(ctx: Context) -> None:
        await ctx.emit({})

    @component.action
    async def run(value: int) -> None: ...

    with pytest.raises(RuntimeError, match="hooks cannot emit"):
        await ComponentHarness(component).start()


async def test_wrong_folder_and_function() -> None:
    with pytest.raises(DefinitionError, match="nowhere"):
        await ComponentHarness("nowhere").start()
    component = Component()

    @component.action
    async def run(value: int) -> None: ...

    async with ComponentHarness(component) as harness:
        with pytest.raises(DefinitionError, match="it has: run"):
            await harness.call("ran", 1)


def polling(source: list[int], committed: list[int], refused: list[str]) -> Component:
    component = Component()

    @component.listener
    async def poll(ctx: Context) -> None:
        while not ctx.draining.is_set():
            if not source:
                await asyncio.wait_for(ctx.draining.wait(), 5)
                return
            item = source.pop(0)
            try:
                await ctx.emit({"item": item}, source_id=str(item))
            except EmitRefused as error:
                refused.append(error.code)
            else:
                committed.append(item)

    return component


async def test_a_listeners_emit_returns_only_when_the_broker_has_it() -> None:
    committed: list[int] = []
    refused: list[str] = []
    async with ComponentHarness(polling([1, 2, 3], committed, refused)) as harness:  # noqa: SIM117
        async with harness.listen("poll") as listener:
            first = await listener.next()
            assert (first.source_id, first.output.value, committed) == ("1", {"item": 1}, [])
            first.store()
            second = await listener.next()
            assert committed == [1]
            second.refuse("DRAINING", "too late")
            (await listener.next()).store()
            await listener.drain()
    assert (committed, refused) == ([1, 3], ["DRAINING"])


async def test_a_listener_that_saves_a_snapshot_is_told_where_to_keep_it() -> None:
    component = Component()
    told: list[str] = []

    @component.listener
    async def poll(ctx: Context) -> None:
        try:
            await ctx.snapshot.merge({"offset": 1})
        except ComponentError as error:
            told.append(f"{error.code}: {error.message}")
        await ctx.emit({"n": 1})

    async with ComponentHarness(component) as harness, harness.listen("poll") as listener:
        (await listener.next()).store()
    assert told[0].startswith("SNAPSHOT_REFUSED: a listener keeps no snapshot")
    assert "the step that receives from the listener" in told[0]


async def test_open_emits_fail_when_the_stream_closes() -> None:
    committed: list[int] = []
    refused: list[str] = []
    async with ComponentHarness(polling([1], committed, refused)) as harness, harness.listen("poll") as listener:
        await listener.next()
    assert committed == []


async def test_unresolved_emits_are_bounded_and_a_stubborn_listener_is_cancelled() -> None:
    component = Component()
    cancelled = []

    @component.listener
    async def flood(ctx: Context) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for n in range(10):
                    group.create_task(ctx.emit(n))  # type: ignore[arg-type]
                await asyncio.sleep(60)  # tidy: pace
        finally:
            cancelled.append(True)

    async with ComponentHarness(component) as harness, harness.listen("flood", max_unresolved=3) as listener:
        held = [await listener.next() for _ in range(3)]
        with pytest.raises(TimeoutError):
            await listener.next(timeout_s=0.05)
        held[0].store()
        held.append(await listener.next())
        for emit in held[1:]:
            emit.store()
        for _ in range(6):
            (await listener.next()).store()
        await listener.drain()
    assert cancelled == [True]


async def test_a_plain_listener_blocks_in_emit_and_its_error_comes_out() -> None:
    component = Component()
    committed = []

    @component.listener
    def poll(ctx: Context) -> None:
        ctx.emit({"n": 1}, source_id="1")
        committed.append(1)
        raise OSError("source gone")

    async with ComponentHarness(component) as harness:
        listener = harness.listen("poll")
        await listener.__aenter__()
        emit = await listener.next()
        assert committed == []
        emit.store()
        with pytest.raises(OSError, match="source gone"):
            await listener.drain()
    assert committed == [1]


FLOW = """\
name: small
reply_timeout: 5s
steps:
  in: {component: any-trigger, to: [work, note]}
  work: {component: any-work, retry: {attempts: 3}}
  note: {component: any-note}
"""


def small_flow(tmp_path: Path, work: Any) -> FlowHarness:
    (tmp_path / "flow.yaml").write_text(FLOW)
    start, worker, note = Component(), Component(), Component()

    @start.trigger
    async def receive(body: bytes, ctx: Context) -> bytes:
        assert ctx.message.headers["headrace-method"] == "POST"
        return body

    worker.action(name="work")(work)

    @note.action
    def write(body: bytes) -> None: ...

    return FlowHarness(tmp_path, components={"in": start, "work": worker, "note": note})


def test_a_flow_in_under_a_second(tmp_path: Path) -> None:
    started = time.monotonic()

    async def work(text: str, ctx: Context) -> None:
        await ctx.reply(f"{text}!", status=202)

    with small_flow(tmp_path, work) as flow:
        result = flow.send("hello", headers={"X-Y": "z"})
    assert result.reply is not None
    assert (result.reply.status, result.reply.value) == (202, "hello!")
    assert result.order == ["in", "work", "note"]
    assert [output.body for output in result.outputs["in"]] == [b"hello"]
    assert result.errors == []
    assert time.monotonic() - started < 1


async def test_flow_failures_retries_and_rebounds(tmp_path: Path) -> None:
    attempts = []

    async def work(text: str, ctx: Context) -> None:
        attempts.append(ctx.message.attempt)
        if text == "refused":
            raise ComponentError("NO", "not this", status=422)
        if text == "later" and len(attempts) < 4:
            raise Rebound("wait")
        if text == "broken" or (text == "twice" and len(attempts) < 2):
            raise RuntimeError("broken")
        await ctx.reply("ok")

    async with small_flow(tmp_path, work) as flow:
        refused = await flow.send("refused")
        assert refused.reply is not None
        assert refused.reply.status == 422
        assert refused.reply.value["error"] == {"code": "NO", "message": "not this", "execution": refused.execution_id}
        assert attempts == [1]
        attempts.clear()
        later = await flow.send("later")
        assert (later.reply.value if later.reply else None, attempts) == ("ok", [1, 2, 3, 4])
        attempts.clear()
        twice = await flow.send("twice")
        assert (twice.reply.value if twice.reply else None, attempts) == ("ok", [1, 2])
        attempts.clear()
        broken = await flow.send("broken")
        assert broken.reply is not None
        assert broken.reply.status == 500
        assert [(error.step, error.attempts) for error in broken.errors] == [("work", 3)]
        assert broken.order == ["in", "work", "note"]


def test_flow_without_its_components_is_refused(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(FLOW)
    with pytest.raises(InvalidInput, match="any-trigger"), FlowHarness(tmp_path):
        pass
    with pytest.raises(InvalidInput, match="not a step"):
        FlowHarness(tmp_path, components={"wrk": Component()})
