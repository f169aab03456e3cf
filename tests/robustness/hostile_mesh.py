"""A mesh with a flow whose step `act` does whatever a request's header `crime` says, and a flow beside it.

hostile:    receive → act (components/menu) → keep (a line of a file for each message)
                    → calm (answers the caller)
bystander:  receive → calm
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from nats.aio.client import Client as Nats

from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.client import Client
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.edge.process_table import resident_bytes
from headrace.model import subjects
from headrace.wire.envelope import DeadLetter, decode_dead_letter
from tests.robustness.traffic import HttpConnection
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh, start_mesh

COMPONENTS = Path(__file__).parent / "components"
WEBHOOK = Path(__file__).parents[2] / "components" / "webhook"
FLOW = "hostile"
BYSTANDER = "bystander"
MEMORY_MB = 200
PROCESSES = 40
TIMEOUT_S = 1.0
BYSTANDER_PAUSE_S = 0.01


@contextlib.contextmanager
def hostile_mesh(folder: Path) -> Iterator[HostileMesh]:
    """Both flows run when it yields."""
    limits = {
        "HEADRACE_COMPONENT_MEMORY_MB": str(MEMORY_MB),
        "HEADRACE_COMPONENT_PROCESSES": str(PROCESSES),
        "HEADRACE_ANSWER_LIMIT_S": "1",
    }
    with start_mesh(folder, "fast", **limits) as mesh:
        kept = folder / "kept.txt"
        with Client(mesh.api) as client:
            for name, file in ((FLOW, _hostile_flow(folder, kept)), (BYSTANDER, _bystander_flow(folder))):
                client.apply(file)
                client.publish(name)
                client.start(name)
        yield HostileMesh(mesh, kept)


def _hostile_flow(folder: Path, kept: Path) -> Path:
    steps = {
        "receive": {"component": str(WEBHOOK), "function": "receive", "to": ["act", "calm"]},
        "act": {
            "component": str(COMPONENTS / "menu"),
            "timeout": f"{int(TIMEOUT_S * 1000)}ms",
            "retry": {"attempts": 2, "backoff": "50ms"},
            "to": ["keep"],
        },
        "keep": {"component": str(COMPONENTS / "calm"), "function": "keep", "config": {"path": str(kept)}},
        "calm": {"component": str(COMPONENTS / "calm"), "function": "answer"},
    }
    return _write(folder / "hostile.yaml", FLOW, steps)


def _bystander_flow(folder: Path) -> Path:
    steps = {
        "receive": {"component": str(WEBHOOK), "function": "receive", "to": ["calm"]},
        "calm": {"component": str(COMPONENTS / "calm"), "function": "answer"},
    }
    return _write(folder / "bystander.yaml", BYSTANDER, steps)


def _write(file: Path, name: str, steps: dict[str, object]) -> Path:
    file.write_text(yaml.safe_dump({"name": name, "type": "realtime", "reply_timeout": "10s", "steps": steps}))
    return file


@dataclass
class HostileMesh:
    mesh: RunningMesh
    kept: Path

    async def post(self, flow: str, body: bytes, crime: str = "") -> int:
        """The status that the caller got."""
        connection = await HttpConnection.open(self.mesh.gateway)
        try:
            headers = {"crime": crime} if crime else {}
            return (await connection.request("POST", f"/hook/{flow}", body, headers)).status
        finally:
            await connection.close()

    def instance(self) -> sidecar_pb2.InstanceStatus:
        """Of step `act`."""
        with Client(self.mesh.api) as client:
            (step,) = [step for step in client.get_status(FLOW).steps if step.step == "act"]
        assert step.instances, "the instance is not up"
        return step.instances[0]

    def kept_lines(self) -> list[str]:
        return self.kept.read_text().splitlines() if self.kept.exists() else []

    async def handles(self, body: bytes, *, within_s: float = 20.0) -> None:
        """A good message goes all the way through the hostile step, once."""
        assert await self.post(FLOW, body) == 200
        await eventually(lambda: body.decode() in self.kept_lines(), within_s=within_s)
        assert self.kept_lines().count(body.decode()) == 1


@dataclass
class Bystander:
    """Requests to the flow beside, one after the other; latencies in seconds."""

    mesh: HostileMesh
    latencies: list[float] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)

    async def run(self) -> None:
        connection = await HttpConnection.open(self.mesh.mesh.gateway)
        try:
            while True:
                began = time.perf_counter()
                answer = await connection.request("POST", f"/hook/{BYSTANDER}", b"{}")
                self.latencies.append(time.perf_counter() - began)
                self.statuses.add(answer.status)
                await asyncio.sleep(BYSTANDER_PAUSE_S)  # tidy: pace
        finally:
            await connection.close()

    def median_s(self) -> float:
        return statistics.median(self.latencies)


@contextlib.asynccontextmanager
async def beside(mesh: HostileMesh) -> AsyncIterator[Bystander]:
    """Runs the bystander's traffic meanwhile."""
    bystander = Bystander(mesh)
    task = asyncio.create_task(bystander.run())
    try:
        await eventually(lambda: len(bystander.latencies) >= 5)
        yield bystander
    finally:
        task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(outcome, Exception):
            raise outcome


class Letters:
    """The dead letters of the mesh, straight from their stream."""

    def __init__(self, connection: Nats) -> None:
        self._connection = connection

    async def all(self) -> list[DeadLetter]:
        stream = subjects.dead_letter_stream("default", FLOW)
        jetstream = self._connection.jetstream(timeout=5)
        info = await jetstream.stream_info(stream)
        found = []
        for sequence in range(max(1, info.state.first_seq), info.state.last_seq + 1):
            with contextlib.suppress(Exception):
                found.append(decode_dead_letter((await jetstream.get_msg(stream, sequence)).data or b""))
        return found

    async def of(self, body: bytes) -> DeadLetter | None:
        """The dead letter of the message with that body."""
        return next((letter for letter in await self.all() if letter.original.body == body), None)


@contextlib.asynccontextmanager
async def letters(mesh: HostileMesh) -> AsyncIterator[Letters]:
    connection = await connect_nats(mesh.mesh.endpoints.nats, "letters")
    try:
        yield Letters(connection)
    finally:
        await close_nats(connection)


def own_memory_mb(pid: int) -> float:
    return resident_bytes(pid) / (1024 * 1024)
