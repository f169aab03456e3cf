"""examples/postgres_sink against a real PostgreSQL: killed between insert and return, each row is there once.

The component under test is the example's, held for a moment between its insert and its return, so that the kill
falls there.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from headrace.client import Client
from tests.robustness.faults import InFlight
from tests.support import soak
from tests.support.eventually import eventually
from tests.support.http_connection import HttpConnection
from tests.support.mesh import RunningMesh, start_mesh
from tests.support.postgres import PostgresServer, postgres_server

EXAMPLE = Path(__file__).parents[2] / "examples" / "postgres_sink"
FLOW = "postgres-sink"
MESSAGES = 60
ROUNDS = soak.rounds(one_in=100, short=1)
HELD = "    await asyncio.sleep(0.15)\n    await ctx.reply("  # tidy: pace
VICTIMS = ("component", "sidecar", "broker")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as running:
        yield running


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, server: PostgresServer) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("sink")
    with start_mesh(folder) as mesh:
        with Client(mesh.api) as client:
            client.apply(example_held_up(folder, server))
            client.publish(FLOW)
            client.start(FLOW, timeout_s=60)
        yield mesh


def example_held_up(folder: Path, server: PostgresServer) -> Path:
    """The example, with this server's address, and with a pause between its insert and its return."""
    component = folder / "write"
    shutil.copytree(EXAMPLE / "write", component, ignore=shutil.ignore_patterns("__pycache__"))
    source = (component / "component.py").read_text()
    held = source.replace("    await ctx.reply(", HELD).replace(
        "import msgspec\n", "import asyncio\n\nimport msgspec\n"
    )
    assert held.count("asyncio") == 2
    (component / "component.py").write_text(held)
    flow = yaml.safe_load((EXAMPLE / "flow.yaml").read_text())
    flow["steps"]["write"]["config"]["dsn"] = server.dsn
    file = folder / "flow.yaml"
    file.write_text(yaml.safe_dump(flow))
    return file


@pytest.mark.needs("postgres")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_row_is_there_once_whatever_is_killed_between_insert_and_return(
    running: RunningMesh, server: PostgresServer, victim: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(ROUNDS):
        ids = [f"{victim}-{number}-{index}" for index in range(MESSAGES)]
        posting = asyncio.gather(*(post(running, order) for order in ids), return_exceptions=True)
        in_flight = await InFlight.open(running.endpoints.nats, FLOW, 1)
        try:
            # Rows are there, and the messages they come from are not acknowledged.
            await eventually(partial(some_are_there, server, ids), within_s=20)
            held = await in_flight.unacknowledged("write")
            is_step = victim != "broker"
            running.kill(victim, FLOW if is_step else "", "write" if is_step else "")
            outcomes = await posting
            accepted = [order for order, outcome in zip(ids, outcomes, strict=True) if outcome == 200]
            await eventually(in_flight.is_empty, within_s=45, every_s=0.1)
        finally:
            await in_flight.close()
        found = rows(server, ids)
        soak.TOTALS.round()
        doubled, missing = len(found) - len(set(found)), len(set(accepted) - set(found))
        soak.TOTALS.judge(len(ids), lost=missing, duplicated=doubled)
        with capsys.disabled():
            print(f"\nkill {victim} holding {held}: {len(found)} rows, {len(accepted)} callers answered")
        assert held > 0, "the victim held nothing: the round does not count"
        assert not doubled, "a row is there twice"
        assert not missing, "a row is missing"


def some_are_there(server: PostgresServer, ids: list[str]) -> bool:
    return 0 < len(rows(server, ids)) < len(ids)


def rows(server: PostgresServer, ids: list[str]) -> list[str]:
    prefix = ids[0].rpartition("-")[0]
    return [row[0] for row in server.rows(f"SELECT id FROM orders WHERE id LIKE '{prefix}-%'")]


async def post(mesh: RunningMesh, order: str) -> int:
    connection = await HttpConnection.open(mesh.gateway)
    try:
        body = json.dumps({"id": order, "amount": 12.5}).encode()
        headers = {"content-type": "application/json"}
        return (await connection.request("POST", f"/hook/{FLOW}", body, headers, limit_s=45)).status
    finally:
        await connection.close()
