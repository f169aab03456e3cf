"""Triggers over time on a real mesh: components that stay loaded, ticks that are stored once."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from headrace.client import AsyncClient
from headrace.model.errors import HeadraceError
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.jsonl import read_lines
from tests.support.mesh import RunningMesh, start_mesh

COUNTED = ROOT / "tests" / "support" / "components" / "counted"
WRITE = ROOT / "examples" / "ticker" / "write"
TIMER = ROOT / "components" / "timer"


async def run_flow(client: AsyncClient, file: Path, text: str) -> str:
    file.write_text(text)
    applied = await client.apply(file)
    name = applied.flow.name.removeprefix("flows/")
    await client.publish(name)
    await client.start(name)
    return name


def assert_every_instant_once(written: list[dict[str, Any]], every_ms: int) -> None:
    instants = [line["unix_ms"] for line in written]
    assert len(set(instants)) == len(instants), "a tick was handled twice"
    owed = set(range(min(instants), max(instants) + 1, every_ms))
    assert set(instants) == owed, f"lost: {sorted(owed - set(instants))[:10]}"


@pytest.mark.timeout(90)
async def test_a_component_is_loaded_once_for_a_thousand_ticks_and_through_a_crash(
    module_mesh: RunningMesh, tmp_path: Path
) -> None:
    ticks, calls = tmp_path / "ticks.jsonl", tmp_path / "calls.jsonl"
    heard, listens = tmp_path / "heard.jsonl", tmp_path / "listens.jsonl"
    async with AsyncClient(module_mesh.api) as client:
        await run_flow(
            client,
            tmp_path / "listening.yaml",
            f"""
name: listening
steps:
  listen: {{component: {COUNTED}, function: listen, config: {{path: {listens}}}, to: [write]}}
  write: {{component: {WRITE}, config: {{path: {heard}}}}}
""",
        )
        await run_flow(
            client,
            tmp_path / "ticking.yaml",
            f"""
name: ticking
steps:
  tick: {{component: {COUNTED}, function: tick, every: 10ms, config: {{path: {calls}}}, to: [write]}}
  write: {{component: {WRITE}, config: {{path: {ticks}}}}}
""",
        )
        await eventually(lambda: len(read_lines(ticks)) > 300, within_s=20)
        module_mesh.kill("component", "ticking", "tick")
        module_mesh.kill("component", "listening", "listen")
        await eventually(lambda: len(read_lines(ticks)) > 1000, within_s=20)
        before = len(read_lines(heard))
        await eventually(lambda: len(read_lines(heard)) > before + 50, within_s=20)
        status = await client.get_status("ticking")
        assert status.timer.step == "tick"
        assert status.timer.ticks >= 1000
        assert (status.timer.skipped, status.timer.edge_full) == (0, 0)
        await client.stop("ticking")
        await client.stop("listening")

    assert_every_instant_once(read_lines(ticks), 10)
    for file, listeners in ((calls, 0), (listens, 1)):
        events = read_lines(file)
        processes = {line["pid"] for line in events}
        assert len(processes) == 2, "one process before the crash, one after it"
        assert [line["event"] for line in events].count("init") == 2
        assert [line["event"] for line in events].count("listen") == 2 * listeners
        for pid in processes:
            of_process = [line for line in events if line["pid"] == pid]
            assert {line["loads"] for line in of_process} == {1}
            assert {line["inits"] for line in of_process} == {1}
            assert max(line["listens"] for line in of_process) == listeners
            calls_made = [line["calls"] for line in of_process if line["event"] == "call"]
            assert calls_made == list(range(1, len(calls_made) + 1)), "one process handles call after call"
            assert len(calls_made) > 100


FLOWS = {"ticker": False, "hosted": True}
"""By name, whether the trigger runs a process."""


def ticker_text(written: Path, note: str, *, process: bool) -> str:
    """examples/ticker with another interval and path, its trigger with a process too; a changed note is another
    configuration."""
    text = (ROOT / "examples" / "ticker" / "flow.yaml").read_text().replace("./write", str(WRITE))
    if process:
        text = text.replace("name: ticker", "name: hosted").replace("every:", f"component: {TIMER}\n    every:")
    text = text.replace("every: 1s", "every: 20ms").replace("Notes each", note)
    return text.replace("/tmp/headrace-ticker/ticks.jsonl", str(written))


@pytest.mark.timeout(120)
async def test_no_tick_is_lost_or_doubled_by_switch_restart_and_fail_over(tmp_path: Path) -> None:
    with start_mesh(tmp_path, "fast", "--orchestrators", "2") as mesh:
        await _through_switch_restart_and_fail_over(mesh, tmp_path)


async def _through_switch_restart_and_fail_over(mesh: RunningMesh, tmp_path: Path) -> None:
    """Two flows side by side: one whose trigger runs no process, one whose does."""
    written, file = {name: tmp_path / f"{name}.jsonl" for name in FLOWS}, tmp_path / "flow.yaml"

    async def more() -> None:
        """Ticks of instants that were still to come are written."""
        later_ms = time.time() * 1000 + 400
        for lines in written.values():
            await eventually(lambda: read_lines(lines)[-1]["unix_ms"] > later_ms, within_s=20)  # noqa: B023

    async with AsyncClient(mesh.endpoints.any_api) as client:
        for name, process in FLOWS.items():
            assert await run_flow(client, file, ticker_text(written[name], "First", process=process)) == name
            await eventually(lambda: read_lines(written[name]), within_s=20)  # noqa: B023
        await more()
        for name, process in FLOWS.items():
            file.write_text(ticker_text(written[name], "Second", process=process) + "    prefetch: 8\n")
            await client.apply(file)
            await client.publish(name)
        await more()
        await asyncio.gather(*(client.restart(name, strategy="RESTART") for name in FLOWS))
        await more()
        mesh.kill((await client.server_info()).leader)  # the other takes over, or its successor does
        await more()
        await _by_the_clock_too(mesh, client, tmp_path)
        for name, step in (("ticker", "write"), ("hosted", "tick"), ("hosted", "write")):
            mesh.kill("component", name, step)
        await more()
        await asyncio.gather(*(_judge(client, name, written[name]) for name in FLOWS))


async def _by_the_clock_too(mesh: RunningMesh, client: AsyncClient, folder: Path) -> None:
    """A cron schedule of each second, through kill -9 of whoever leads, twice."""
    written, write = folder / "clocked.jsonl", f"component: {WRITE}, config: {{path: {folder / 'clocked.jsonl'}}}"
    text = f"name: clocked\nsteps:\n  tick: {{cron: '* * * * * *', to: [write]}}\n  write: {{{write}}}\n"
    await run_flow(client, folder / "clocked.yaml", text)
    await eventually(lambda: read_lines(written), within_s=20)
    for _ in range(2):
        mesh.kill(await eventually(partial(_leader, client), within_s=20))
        killed_ms = time.time() * 1000
        await eventually(lambda: read_lines(written)[-1]["unix_ms"] > killed_ms, within_s=20)  # noqa: B023
    timer = (await client.get_status("clocked")).timer
    assert (timer.skipped, timer.edge_full) == (0, 0)
    assert_every_instant_once(first_of_each_message(read_lines(written)), 1000)
    await client.stop("clocked")


async def _leader(client: AsyncClient) -> str:
    """Whoever leads now; empty while nobody answers for it."""
    try:
        return (await client.server_info()).leader
    except HeadraceError:
        return ""


async def _judge(client: AsyncClient, name: str, written: Path) -> None:
    timer = (await client.get_status(name)).timer
    assert (timer.skipped, timer.edge_full) == (0, 0)
    assert timer.ticks >= 100
    assert_every_instant_once(first_of_each_message(read_lines(written)), 20)
    await client.suspend(name)
    assert not (await client.get_status(name)).timer.HasField("next_instant")
    before = time.time() * 1000
    await asyncio.sleep(0.5)  # tidy: pace
    await client.resume(name)
    await eventually(lambda: read_lines(written)[-1]["unix_ms"] > before + 900, within_s=20)
    await client.stop(name)
    instants = sorted({line["unix_ms"] for line in read_lines(written)})
    assert max(later - earlier for earlier, later in pairwise(instants)) >= 500, "a suspension was made up for"
    await client.delete_flow(name)


def first_of_each_message(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line is written again when its process is killed after writing it: its message id is the same then."""
    return list({line["message_id"]: line for line in reversed(lines)}.values())
