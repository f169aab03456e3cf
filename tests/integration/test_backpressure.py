"""Full edges in a real mesh: the pressure goes back to the source step by step, and nothing is lost when it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from headrace.client import AsyncClient
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import subjects
from headrace.model.errors import Exhausted
from headrace.model.names import DEFAULT_WORKSPACE
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.http_connection import HttpAnswer, fetch
from tests.support.mesh import RunningMesh

MOST = 25
CHAIN = """
import asyncio
from pathlib import Path
from headrace.sdk import Component, Context

component = Component()


@component.listener
async def listen(ctx: Context) -> None:
    # Emits as much at once as it is let; what returned from emit is committed.
    numbers = iter(range(1_000_000))

    async def source() -> None:
        while not ctx.draining.is_set():
            number = next(numbers)
            await ctx.emit({"n": number}, source_id=str(number))
            with open(ctx.config["committed"], "a") as committed:
                committed.write(f"{number}\\n")

    await asyncio.gather(*(source() for _ in range(50)), return_exceptions=True)


@component.action
async def forward(order: dict) -> dict:
    return order


@component.action
async def last(order: dict, ctx: Context) -> None:
    gate = Path(ctx.config["gate"])
    while not gate.exists():
        await asyncio.sleep(0.02)  # tidy: pace
    with open(ctx.config["notes"], "a") as notes:
        notes.write(f"{order['n']}\\n")
"""
MANIFEST = """name: chain
functions: {listen: {kind: listener}, forward: {kind: action}, last: {kind: action}}
"""


class Chain:
    """A flow `first → one → two → last`, whose last step works only while the gate is open."""

    def __init__(self, name: str, mesh: RunningMesh, folder: Path, first: str) -> None:
        self.name, self.mesh, self.folder = name, mesh, folder
        self.gate, self.notes, self.committed = folder / "gate", folder / "notes", folder / "committed"
        (folder / "chain").mkdir()
        (folder / "chain" / "component.yaml").write_text(MANIFEST)
        (folder / "chain" / "component.py").write_text(CHAIN)
        config = f"config: {{gate: {self.gate}, notes: {self.notes}}}"
        (folder / "flow.yaml").write_text(
            f"name: {name}\nmax_waiting: {MOST}\nsteps:\n"
            f"  first: {{{first}, to: [one]}}\n"
            "  one: {component: ./chain, function: forward, prefetch: 1, to: [two]}\n"
            "  two: {component: ./chain, function: forward, prefetch: 1, to: [last]}\n"
            f"  last: {{component: ./chain, function: last, prefetch: 1, {config}}}\n"
        )

    async def run(self, client: AsyncClient) -> None:
        await client.apply(self.folder / "flow.yaml")
        await client.publish(self.name)
        await client.start(self.name)

    def lines(self, file: Path) -> list[int]:
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    async def post(self, number: int) -> HttpAnswer:
        return await fetch(self.mesh.gateway, "POST", f"/hook/{self.name}", b'{"n": %d}' % number)


class Edges:
    """Watches how many messages wait on each edge of a flow's first deployment, in-flight ones included."""

    def __init__(self, assets: JetStreamAssets, flow: str, steps: Sequence[str]) -> None:
        self._assets, self._flow, self._steps = assets, flow, steps
        self.most = dict.fromkeys(steps, 0)
        self.looks = 0
        self.over = False

    async def look(self) -> dict[str, int]:
        stream = subjects.flow_stream(DEFAULT_WORKSPACE, self._flow)
        info = await self._assets.stream_info(stream, f"{subjects.ROOT}.{DEFAULT_WORKSPACE}.{self._flow}.>")
        stored = ((info or {}).get("state") or {}).get("subjects") or {}
        counts = dict.fromkeys(self._steps, 0)
        for subject, count in stored.items():
            step = subjects.parse_data_subject(subject).step
            if step in counts:  # and not the barrier of a switch
                counts[step] += count
        self.most = {step: max(self.most[step], count) for step, count in counts.items()}
        self.looks += 1
        return counts

    async def watch(self) -> None:
        # A flag and no cancellation: asyncio.wait_for of Python 3.11, which nats-py asks with, can swallow one that
        # comes together with the answer.
        while not self.over:
            await self.look()
            await asyncio.sleep(0.01)  # tidy: pace


@contextlib.asynccontextmanager
async def watched(mesh: RunningMesh, flow: str, steps: Sequence[str]) -> AsyncIterator[Edges]:
    connection = await connect_nats(mesh.endpoints.nats, "edges")
    edges = Edges(JetStreamAssets(connection), flow, steps)
    watching = asyncio.create_task(edges.watch())
    try:
        yield edges
    finally:
        edges.over = True
        await watching
        await close_nats(connection)


def _check_refusal(answer: HttpAnswer) -> None:
    assert answer.status == 429, answer.body
    assert answer.json()["error"]["code"] == "FLOW_FULL"
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.timeout(120)
async def test_a_slow_last_step_slows_its_senders_back_to_the_caller_and_nothing_is_lost(
    module_mesh: RunningMesh, tmp_path: Path
) -> None:
    webhook = f"component: {ROOT / 'components' / 'webhook'}, function: receive, prefetch: 1"
    chain = Chain("backpressure", module_mesh, tmp_path, webhook)
    steps = ("first", "one", "two", "last")
    accepted: list[int] = []
    async with AsyncClient(module_mesh.api) as client, watched(module_mesh, chain.name, steps) as edges:
        await chain.run(client)
        number = 0

        async def all_full() -> bool:
            nonlocal number
            for _ in range(20):
                answer = await chain.post(number)
                if answer.status == 202:
                    accepted.append(number)
                else:
                    _check_refusal(answer)
                number += 1
            return set((await edges.look()).values()) == {MOST}

        await eventually(all_full, within_s=30)
        assert len(accepted) == len(steps) * MOST, "every accepted message is on one of the edges"
        for extra in range(5):
            _check_refusal(await chain.post(10_000 + extra))
        with pytest.raises(Exhausted) as refused:
            await client.inject(chain.name, b'{"n": 20000}')
        assert refused.value.reason == "EDGE_FULL"
        assert chain.lines(chain.notes) == []

        chain.gate.touch()
        # While the edges recover, callers go on: whoever is refused comes again, and is taken in the end.
        for fresh in range(30_000, 30_020):

            async def taken(fresh: int = fresh) -> bool:
                answer = await chain.post(fresh)
                if answer.status == 429:
                    _check_refusal(answer)
                return answer.status == 202

            await eventually(taken)
            accepted.append(fresh)
        await eventually(lambda: len(chain.lines(chain.notes)) >= len(accepted), within_s=30)
        assert chain.lines(chain.notes) == accepted, "in order, each once"
        await eventually(lambda: edges.looks > 50)
        assert max(edges.most.values()) == MOST
        assert await edges.look() == dict.fromkeys(steps, 0)
        await client.stop(chain.name)


@pytest.mark.timeout(120)
async def test_a_listener_stops_reading_while_the_edges_are_full_and_goes_on_afterwards(
    module_mesh: RunningMesh, tmp_path: Path
) -> None:
    first = f"component: ./chain, function: listen, prefetch: 4, config: {{committed: {tmp_path / 'committed'}}}"
    chain = Chain("listening-back", module_mesh, tmp_path, first)
    steps = ("one", "two", "last")
    async with AsyncClient(module_mesh.api) as client, watched(module_mesh, chain.name, steps) as edges:
        await chain.run(client)

        async def all_full() -> bool:
            return set((await edges.look()).values()) == {MOST}

        await eventually(all_full, within_s=30)
        await eventually(lambda: len(chain.lines(chain.committed)) == len(steps) * MOST)
        before = edges.looks
        await eventually(lambda: edges.looks > before + 30)
        # It holds what it may, blocked; nothing more is committed at the source.
        assert len(chain.lines(chain.committed)) == len(steps) * MOST

        chain.gate.touch()
        await eventually(lambda: len(chain.lines(chain.notes)) > 4 * len(steps) * MOST, within_s=30)
        await client.stop(chain.name)
        assert max(edges.most.values()) == MOST
    committed, notes = chain.lines(chain.committed), chain.lines(chain.notes)
    assert len(notes) == len(set(notes)), "doubled"
    assert set(committed) <= set(notes), "lost"
    # At most what was unresolved when it was drained may be among the notes only.
    assert len(set(notes) - set(committed)) <= 4
