"""The component and the test that docs/components.md shows work as they stand there."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from headrace.edge.broker_process import free_port
from headrace.sdk.testing import ComponentHarness
from tests.support.eventually import eventually
from tests.support.guide import guide_block


def test_the_first_component_and_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "greet"
    folder.mkdir()
    (folder / "component.yaml").write_text(guide_block("# component.yaml"))
    (folder / "component.py").write_text(guide_block("# component.py"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(guide_block("def test_greet():"), "guide", "exec"), names)
    test = names["test_greet"]
    assert callable(test)
    test()


async def test_the_listener_says_ok_only_when_the_broker_has_the_line(tmp_path: Path) -> None:
    folder = tmp_path / "lines"
    folder.mkdir()
    (folder / "component.yaml").write_text(guide_block("# component.yaml of a listener"))
    (folder / "component.py").write_text(guide_block("# component.py of a listener"))
    port = free_port()
    async with ComponentHarness(folder, config={"port": port}) as harness, harness.listen("receive") as listening:
        reader, writer = await _connect(port)
        writer.write(b"1 hello\n2 again\n")
        first = await listening.next()
        assert (first.source_id, first.output.value) == ("1", {"number": 1, "text": "hello"})
        first.store()
        assert await reader.readline() == b"ok\n"
        (await listening.next()).refuse("DRAINING", "the edge is full")
        assert await reader.readline() == b"", "a refused line is not acknowledged"
        writer.close()
        await listening.drain()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_the_sink_writes_a_batch_in_one_transaction(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "component.yaml").write_text(guide_block("# component.yaml of a sink"))
    (folder / "component.py").write_text(guide_block("# component.py of a sink"))
    file = tmp_path / "rows.db"
    async with ComponentHarness(folder, config={"path": str(file)}) as harness:
        rows = [{"sku": "a", "amount": 1}, {"sku": "b", "amount": 0}, {"sku": "c", "amount": 2}]
        first, empty, last = await harness.call_batch("insert", rows)
        assert (first.value, last.value) == ({"stored": "a"}, {"stored": "c"})
        assert empty.error is not None
        assert (empty.error.code, empty.error.status) == ("NO_AMOUNT", 422)
        assert (await harness.call("insert", {"sku": "d", "amount": 3})).value == {"stored": "d"}
    with contextlib.closing(sqlite3.connect(file)) as table:
        assert sorted(table.execute("SELECT sku, amount FROM rows")) == [("a", 1), ("c", 2), ("d", 3)]


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async def attempt() -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        with contextlib.suppress(ConnectionRefusedError):
            return await asyncio.open_connection("127.0.0.1", port)
        return None

    connection = await eventually(attempt)
    assert connection is not None
    return connection
