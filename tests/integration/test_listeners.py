"""Listeners in a real mesh: an exclusive one is drained before its successor listens; nothing lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.client import AsyncClient
from headrace.edge.broker_process import free_port
from headrace.model.errors import InvalidInput, WrongState
from tests.support.eventually import eventually
from tests.support.guide import guide_block
from tests.support.jsonl import read_lines
from tests.support.mesh import RunningMesh

NOTE = """
import os
import msgspec
from headrace.sdk import Component, Context

component = Component()

@component.action
async def note(line: dict, ctx: Context) -> None:
    with open(ctx.config["path"], "ab", buffering=0) as file:
        file.write(msgspec.json.encode({**line, "by": os.getpid()}) + b"\\n")
"""


@dataclass
class Sender:
    """Sends numbered lines to a port, one after the other, each until it is answered `ok`."""

    port: int
    acknowledged: int = 0
    refused: int = 0
    longest_gap_s: float = 0.0
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while not self.stopped.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except ConnectionRefusedError:
                self.refused += 1
                await asyncio.sleep(0.002)  # tidy: pace
                continue
            with contextlib.suppress(ConnectionError):
                while not self.stopped.is_set():
                    writer.write(f"{self.acknowledged + 1} hello\n".encode())
                    if await reader.readline() != b"ok\n":
                        break
                    self.acknowledged += 1
                    self.longest_gap_s = max(self.longest_gap_s, loop.time() - last)
                    last = loop.time()
            writer.close()


def flow_text(folder: Path, port: int, noted: Path, greeting: str) -> str:
    return f"""
name: lines
steps:
  receive: {{component: {folder / "lines"}, config: {{port: {port}}}, to: [note]}}
  note: {{component: {folder / "note"}, config: {{path: {noted}, greeting: {greeting}}}}}
"""


@pytest.fixture
def components(tmp_path: Path) -> Path:
    """The listener of the guide, and a step that notes what it gets."""
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "component.yaml").write_text(guide_block("# component.yaml of a listener"))
    (tmp_path / "lines" / "component.py").write_text(guide_block("# component.py of a listener"))
    (tmp_path / "note").mkdir()
    (tmp_path / "note" / "component.yaml").write_text("name: note\nfunctions:\n  note: {kind: action}\n")
    (tmp_path / "note" / "component.py").write_text(NOTE)
    return tmp_path


@pytest.mark.timeout(90)
async def test_an_exclusive_listener_is_drained_before_its_successor_listens(
    module_mesh: RunningMesh, components: Path
) -> None:
    port, noted, file = free_port(), components / "noted.jsonl", components / "flow.yaml"
    sender = Sender(port)
    async with AsyncClient(module_mesh.api) as client:
        with_interval = flow_text(components, port, noted, "one").replace("to: [note]", "to: [note], every: 1s")
        file.write_text(with_interval)
        with pytest.raises(InvalidInput, match=r"every.*is a listener"):
            await client.apply(file)
        file.write_text(flow_text(components, port, noted, "one"))
        await client.apply(file)
        await client.publish("lines")
        await client.start("lines")
        sending = asyncio.create_task(sender.run())
        await eventually(lambda: sender.acknowledged > 100)
        with pytest.raises(WrongState, match="is started by its listener"):
            await client.inject("lines", b"{}")

        file.write_text(flow_text(components, port, noted, "two"))
        await client.apply(file)
        published = await client.publish("lines")
        assert "nobody listened for at most" in published.message
        gap_ms = (await deployment(client, published.deployment)).start_ms["listener_gap"]
        assert 0 < gap_ms < 5000
        # What the sender felt is no more than what is reported, and the time of a connection.
        assert sender.longest_gap_s * 1000 < gap_ms + 500
        before = sender.acknowledged
        await eventually(lambda: sender.acknowledged > before + 100)

        restarted = await client.restart("lines", strategy="RESTART")
        assert (await deployment(client, restarted.deployment)).start_ms["listener_gap"] > 0
        before = sender.acknowledged
        await eventually(lambda: sender.acknowledged > before + 100)
        module_mesh.kill("component", "lines", "receive")
        before = sender.acknowledged
        await eventually(lambda: sender.acknowledged > before + 100)
        sender.stopped.set()
        await sending
        await client.stop("lines")
    numbers = [line["number"] for line in read_lines(noted)]
    assert sorted(numbers) == list(range(1, max(numbers) + 1)), "a line was lost or doubled"
    assert max(numbers) - sender.acknowledged in (0, 1)
    assert sender.refused > 0
    assert "Address already in use" not in module_mesh.log("agent")


async def deployment(client: AsyncClient, number: int):  # type: ignore[no-untyped-def]
    return next(item for item in await client.list_deployments("lines") if item.number == number)
