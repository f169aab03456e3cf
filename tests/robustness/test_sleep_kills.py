"""Steps that fall asleep and wake all the time, while processes are killed: nothing lost, nothing doubled, and ticks at
each instant once. With `HEADRACE_SOAK_ROUNDS` more rounds."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from headrace.client import AsyncClient
from headrace.model.errors import HeadraceError
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.http_connection import fetch
from tests.support.jsonl import read_lines
from tests.support.mesh import RunningMesh
from tests.support.small_mesh_flow import run_flow
from tests.support.soak import rounds

SCRIBE = ROOT / "tests" / "support" / "components" / "scribe"
WEBHOOK = ROOT / "components" / "webhook"
TIMER = ROOT / "components" / "timer"
MESSAGES = 8
VICTIMS = ("sidecar", "component", "orchestrator", "agent")
pytestmark = pytest.mark.timeout(300)


def napping(out: Path) -> str:
    return f"""
name: napping
type: ordinary
steps:
  receive: {{component: {WEBHOOK}, function: receive, to: [middle], idle_timeout: 0s}}
  middle: {{component: {SCRIBE}, function: say, to: [write], idle_timeout: 0s, replicas: 2}}
  write: {{component: {SCRIBE}, function: write, config: {{path: {out}}}, idle_timeout: 0s, key: "body:/k"}}
"""


def ticking(out: Path) -> str:
    return f"""
name: ticking
type: ordinary
steps:
  tick: {{component: {TIMER}, function: tick, every: 900ms, to: [write], idle_timeout: 0s}}
  write: {{component: {SCRIBE}, function: write, config: {{path: {out}}}, idle_timeout: 0s}}
"""


async def post(mesh: RunningMesh, number: int, seed: int) -> None:
    """Until it is taken; repeats are the same message."""
    headers = {"content-type": "application/json", "idempotency-key": f"{seed}-{number}"}
    body = json.dumps({"n": number, "k": number % 3}).encode()

    async def taken() -> bool:
        try:
            return (await fetch(mesh.gateway, "POST", "/hook/napping", body, headers)).status == 202
        except (OSError, TimeoutError):
            return False

    await eventually(taken)


def kill(mesh: RunningMesh, victim: str, chance: random.Random) -> None:
    step = chance.choice(("receive", "middle", "write"))
    try:
        if victim in ("sidecar", "component"):
            mesh.kill(victim, "napping", step)
        else:
            mesh.kill(victim)
    except (AssertionError, ProcessLookupError):
        return  # it sleeps, or is being started again


async def rested(client: AsyncClient, out: Path, count: int) -> bool:
    return len({line["body"]["n"] for line in read_lines(out)}) == count


@pytest.mark.parametrize("seed", range(rounds(100, 1)))
async def test_nothing_is_lost_or_doubled_while_steps_sleep_and_wake(
    module_mesh: RunningMesh, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    out, ticks = tmp_path / "out.jsonl", tmp_path / "ticks.jsonl"
    async with AsyncClient(module_mesh.api) as client:
        await run_flow(client, tmp_path / "flow.yaml", napping(out))
        await run_flow(client, tmp_path / "ticks.yaml", ticking(ticks))
        for number in range(MESSAGES):
            await post(module_mesh, number, seed)
            await asyncio.sleep(chance.uniform(0.0, 0.5))  # tidy: pace
            if number % 2:
                kill(module_mesh, VICTIMS[(number // 2 + seed) % len(VICTIMS)], chance)
        await eventually(lambda: rested(client, out, MESSAGES), within_s=60)
        lines = read_lines(out)
        ids: dict[int, set[str]] = {}
        for line in lines:
            ids.setdefault(line["body"]["n"], set()).add(line["id"])
        assert {number: len(found) for number, found in ids.items()} == dict.fromkeys(range(MESSAGES), 1)
        await eventually(lambda: stopped(client, "ticking"), within_s=60)
        await eventually(lambda: stopped(client, "napping"), within_s=60)
        instants = sorted({line["body"]["unix_ms"] for line in read_lines(ticks)})
        assert all(later - earlier == 900 for earlier, later in itertools.pairwise(instants)), instants
        assert len({line["id"] for line in read_lines(ticks)}) == len(instants)
        for name in ("napping", "ticking"):
            await client.delete_flow(name)


async def stopped(client: AsyncClient, flow: str) -> Any:
    """Asked again until the mesh is there again."""
    try:
        if (await client.get_flow(flow)).state != 1:
            await client.stop(flow)
        return (await client.get_flow(flow)).state == 1
    except HeadraceError:
        return False
