"""What callers of a real mesh meet: two gateways, full edges, deadlines; and what a stop does with what waits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from headrace.model.errors import WrongState
from tests.support.commands import headrace
from tests.support.eventually import eventually
from tests.support.http_connection import fetch
from tests.support.mesh import RunningMesh, start_mesh
from tests.support.small_flow import HEAD, SmallFlow

NOTES = """
@component.action
async def act(order: dict, ctx: Context) -> None:
    gate = Path(%(gate)r)
    while not gate.exists():
        await asyncio.sleep(0.02)  # tidy: pace
    with open(%(notes)r, "a") as notes:
        notes.write(f"{order['n']}\\n")
"""
COUNTS = """
calls = 0

@component.action
async def act(order: dict, ctx: Context) -> None:
    global calls
    calls += 1
    await asyncio.sleep(order.get("wait", 0))  # tidy: pace
    Path(%r).touch()
    await ctx.reply({"call": calls}, status=201, headers={"x-call": str(calls)})
"""


@pytest.fixture(scope="module")
def two_gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with start_mesh(tmp_path_factory.mktemp("traffic"), "fast", "--gateways", "2") as mesh:
        yield mesh


class Gated:
    """A flow whose second step notes each order, one after the other, while the gate is open."""

    def __init__(self, mesh: RunningMesh, folder: Path, head: str = "") -> None:
        self.gate, self.notes = folder / "gate", folder / "notes"
        code = HEAD + NOTES % {"gate": str(self.gate), "notes": str(self.notes)}
        self.flow = SmallFlow.write(mesh, folder / "flow", code, head=head, act="prefetch: 2")

    def noted(self) -> list[int]:
        return [int(line) for line in self.notes.read_text().split()] if self.notes.exists() else []

    async def post(self, numbers: range) -> dict[int, int]:
        """Status of each."""
        answers = {number: await self.flow.post(b'{"n": %d}' % number) for number in numbers}
        for answer in answers.values():
            if answer.status == 429:
                assert answer.json()["error"]["code"] == "FLOW_FULL"
                assert int(answer.headers["retry-after"]) >= 1
        return {number: answer.status for number, answer in answers.items()}


async def test_a_request_through_each_gateway_and_a_replay_through_the_other(
    two_gateways: RunningMesh, tmp_path: Path
) -> None:
    flow = SmallFlow.write(two_gateways, tmp_path, HEAD + COUNTS % str(tmp_path / "touched"))
    flow.run()
    first = await flow.post(gateway=0, idempotency_key="k-1")
    assert (first.status, first.json(), first.headers["x-call"]) == (201, {"call": 1}, "1")
    again = await flow.post(gateway=1, idempotency_key="k-1")
    assert (again.status, again.body, again.headers["x-call"]) == (201, first.body, "1")
    for name in ("headrace-execution", "headrace-version", "headrace-deployment"):
        assert again.headers[name] == first.headers[name]
    other_body = await flow.post(b'{"wait": 0}', gateway=1, idempotency_key="k-1")
    assert (other_body.status, other_body.json()["error"]["code"]) == (422, "KEY_WITH_OTHER_BODY")

    both = await asyncio.gather(
        *(flow.post(b'{"wait": 2}', gateway=number, idempotency_key="k-2") for number in (0, 1))
    )
    assert sorted(answer.status for answer in both) == [201, 409]
    assert (await flow.post(b'{"wait": 2}', gateway=0, idempotency_key="k-2")).json() == {"call": 2}
    assert (await flow.post(gateway=1)).json() == {"call": 3}
    flow.remove()


async def test_a_caller_gets_504_with_the_execution_which_goes_on(two_gateways: RunningMesh, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    flow = SmallFlow.write(two_gateways, tmp_path, HEAD + COUNTS % str(touched), head="reply_timeout: 500ms")
    flow.run()
    late = await flow.post(b'{"wait": 1.2}')
    assert late.status == 504
    assert late.json()["error"]["execution"] == late.headers["headrace-execution"]
    assert "headrace-deployment" not in late.headers
    assert not touched.exists()
    await eventually(touched.exists)
    flow.remove()


async def test_a_full_flow_answers_429_and_takes_orders_again_and_a_drain_finishes_all(
    two_gateways: RunningMesh, tmp_path: Path
) -> None:
    gated = Gated(two_gateways, tmp_path, head="max_waiting: 10")
    gated.flow.run()
    statuses = await gated.post(range(60))
    counts = Counter(statuses.values())
    assert set(counts) == {202, 429}
    accepted = {number for number, status in statuses.items() if status == 202}
    assert 10 <= len(accepted) <= 20  # max_waiting on each of the two edges
    assert gated.noted() == []
    assert set((await gated.post(range(100, 103))).values()) == {429}

    gated.gate.touch()
    await eventually(lambda: len(gated.noted()) == len(accepted))
    gated.gate.unlink()
    statuses |= await gated.post(range(200, 208))
    assert [statuses[number] for number in range(200, 208)] == [202] * 8

    # Told to stop with eight waiting: it refuses new ones, and finishes these.
    stopping = asyncio.ensure_future(asyncio.to_thread(gated.flow.flow, "stop"))
    await eventually(lambda: gated.flow.status().state == flow_pb2.FLOW_STATE_STOPPING)
    assert (await gated.flow.post()).status == 503
    assert not stopping.done()
    gated.gate.touch()
    assert (await stopping).ok() == f"{gated.flow.name}: STOPPED, nothing waits\n"
    assert sorted(gated.noted()) == sorted([*accepted, *range(200, 208)])
    gated.flow.remove()


async def test_a_drop_throws_away_what_waits_and_counts_it(two_gateways: RunningMesh, tmp_path: Path) -> None:
    gated = Gated(two_gateways, tmp_path)
    gated.flow.run()
    gated.gate.touch()
    assert set((await gated.post(range(5))).values()) == {202}
    await eventually(lambda: len(gated.noted()) == 5)
    await eventually(lambda: all(step.in_flight == step.waiting == 0 for step in gated.flow.status().steps))
    gated.gate.unlink()
    assert set((await gated.post(range(5, 25))).values()) == {202}
    assert gated.flow.flow("stop", "--drop", "--yes").ok() == f"{gated.flow.name}: STOPPED, 20 messages dropped\n"
    gated.gate.touch()
    gated.flow.start()  # nothing of what was dropped comes back
    assert set((await gated.post(range(30, 31))).values()) == {202}
    await eventually(lambda: gated.noted() == [0, 1, 2, 3, 4, 30])
    gated.flow.remove()


LISTENER = """
@component.listener
async def listen(ctx: Context) -> None:
    number = 0
    while not ctx.draining.is_set():
        await ctx.emit({"n": number}, source_id=str(number))
        with open(%(committed)r, "a") as committed:
            committed.write(f"{number}\\n")
        number += 1
        await asyncio.sleep(0.02)  # tidy: pace

@component.action
async def act(order: dict, ctx: Context) -> None:
    with open(%(notes)r, "a") as notes:
        notes.write(f"{order['n']}\\n")
"""


async def test_a_listener_feeds_a_flow_until_it_is_stopped(two_gateways: RunningMesh, tmp_path: Path) -> None:
    """Each emit that returned has its effect, once; after the stop there are no more."""
    committed, notes, component = tmp_path / "committed", tmp_path / "notes", tmp_path / "source"
    component.mkdir()
    manifest = "name: source\nfunctions: {listen: {kind: listener}, act: {kind: action}}\n"
    (component / "component.yaml").write_text(manifest)
    (component / "component.py").write_text(HEAD + LISTENER % {"committed": str(committed), "notes": str(notes)})
    (tmp_path / "flow.yaml").write_text(
        "name: listening\ntype: realtime\nsteps:\n"
        "  listen: {component: ./source, function: listen, to: [act]}\n"
        "  act: {component: ./source, function: act}\n"
    )

    def lines(file: Path) -> list[str]:
        return file.read_text().split() if file.exists() else []

    async with AsyncClient(two_gateways.api) as client:
        await client.apply(tmp_path / "flow.yaml")
        await client.publish("listening")
        assert lines(committed) == []
        await client.start("listening")
        await eventually(lambda: len(lines(notes)) >= 20)
        assert (await client.get_status("listening")).webhook_url == ""
        # Nobody would ever take what comes from elsewhere, so it is refused.
        for gateway in two_gateways.endpoints.gateways:
            assert (await fetch(gateway, "POST", "/hook/listening")).status == 404
        with pytest.raises(WrongState, match="listener"):
            await client.inject("listening", b"{}")
    stopped = headrace("flow", "stop", "listening", data=two_gateways.data)
    assert stopped.ok() == "listening: STOPPED, nothing waits\n"
    emitted = lines(committed)
    assert sorted(map(int, lines(notes))) == list(range(len(emitted)))
    async with AsyncClient(two_gateways.api) as client:
        await client.delete_flow("listening")
    assert lines(committed) == emitted
