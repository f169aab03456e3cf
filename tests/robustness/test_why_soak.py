"""Troubles that need a mesh of their own: a broker behind a proxy, with users, on a small disk, with another clock; and
a lease that nobody holds. Only in the soak."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from headrace.client import AsyncClient
from headrace.edge.broker_process import find_nats_server, free_port
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import bucket_names
from headrace.model.causes import Cause
from services.orchestrator.domain.documents import encode
from services.orchestrator.domain.leadership import LeaseDocument
from tests.robustness.moody_flow import MoodyFlow
from tests.robustness.test_why_mesh import healthy, named
from tests.support import small_disk
from tests.support.mesh import RunningMesh, start_mesh
from tests.support.tcp_proxy import TcpProxy

DISK_BYTES = 1 << 30


@contextlib.asynccontextmanager
async def running_flow(mesh: RunningMesh, folder: Path) -> AsyncIterator[str]:
    """A healthy one; its name."""
    flow = MoodyFlow(mesh, folder, AsyncClient(mesh.api, timeout_s=30))
    async with flow.client:
        await flow.push()
        await flow.run()
    yield flow.name


@contextlib.asynccontextmanager
async def broker_with_users(folder: Path) -> AsyncIterator[tuple[str, int, Path]]:
    """User ann, password right; its port, process and settings."""
    settings, port = folder / "nats.conf", free_port()
    settings.write_text(
        f'port: {port}\nhost: 127.0.0.1\njetstream {{ store_dir: "{folder}/js" }}\n'
        "authorization { user: ann, password: right }\n"
    )
    server = await asyncio.create_subprocess_exec(find_nats_server(), "-c", str(settings), stdout=-3, stderr=-3)
    try:
        yield str(port), server.pid, settings
    finally:
        server.kill()
        await server.wait()


async def test_a_broker_behind_a_proxy_and_with_users(tmp_path: Path) -> None:
    async with broker_with_users(tmp_path) as (port, pid, settings):
        proxy = TcpProxy(int(port))
        proxy.keep_sent = False
        await proxy.start()
        url = f"nats://ann:right@127.0.0.1:{proxy.port}"
        try:
            with await asyncio.to_thread(_enter, tmp_path, "--nats", url) as mesh:
                async with running_flow(mesh, tmp_path) as flow:
                    proxy.black_hole(f"default.{flow}.d1.work.0")
                    found = await named(mesh, flow, Cause.SIDECAR_CUT_OFF)
                    assert found.findings[0].step == "work"
                    proxy.heal()
                    await healthy(mesh, flow)
                    proxy.delay_s = 0.15
                    await named(mesh, flow, Cause.BROKER_SLOW)
                    proxy.delay_s = 0.0
                    await healthy(mesh, flow)
                    settings.write_text(settings.read_text().replace("right", "another"))
                    os.kill(pid, signal.SIGHUP)
                    await named(mesh, flow, Cause.BROKER_REFUSES)
                    settings.write_text(settings.read_text().replace("another", "right"))
                    os.kill(pid, signal.SIGHUP)
                    await healthy(mesh, flow)
        finally:
            await proxy.stop()


def _enter(folder: Path, *options: str) -> contextlib.ExitStack:
    """A mesh whose start does not hold up the loop, on which its broker's proxy runs."""
    stack = contextlib.ExitStack()
    return _Entered(stack, stack.enter_context(start_mesh(folder, "fast", *options)))


class _Entered(contextlib.ExitStack):
    def __init__(self, stack: contextlib.ExitStack, mesh: RunningMesh) -> None:
        super().__init__()
        self._stack, self._mesh = stack, mesh

    def __enter__(self) -> RunningMesh:  # type: ignore[override]
        return self._mesh

    def __exit__(self, *_: object) -> None:  # type: ignore[override]
        self._stack.close()


@pytest.mark.needs(small_disk.NEED)
async def test_a_broker_with_a_full_disk(tmp_path: Path) -> None:
    store = tmp_path / "data" / "broker"
    store.mkdir(parents=True)
    with start_mesh(tmp_path, "durable", within=partial(small_disk.wrapped, store, DISK_BYTES)) as mesh:
        async with running_flow(mesh, tmp_path) as flow:
            filler = small_disk.fill(small_disk.place(mesh.process.pid, store))
            await named(mesh, flow, Cause.BROKER_FULL)
            filler.unlink()
            await healthy(mesh, flow)


async def test_a_broker_with_another_clock(tmp_path: Path) -> None:
    """Everything but the broker, which is a static program, is five seconds ahead."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    assert library is not None, "the soak needs Debian's libfaketime"
    ahead = {"LD_PRELOAD": str(library), "FAKETIME": "+5s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with start_mesh(tmp_path, "fast", **ahead) as mesh:
        async with running_flow(mesh, tmp_path) as flow:
            answer = await named(mesh, flow, Cause.CLOCK_SKEW)
            assert "the broker's clock is 5.0 s behind" in answer.findings[0].evidence[0]


@contextlib.asynccontextmanager
async def held_lease(mesh: RunningMesh) -> AsyncIterator[None]:
    """Somebody who is not there holds the lease."""
    connection = await connect_nats(mesh.endpoints.nats, "ghost")
    bucket = await KvBucket.open(connection, bucket_names.lease_bucket("default"))
    ghost = encode(LeaseDocument("ghost", "0" * 12, "127.0.0.1:9", 1))

    async def keep() -> None:
        while True:
            await bucket.put("leader", ghost)
            await asyncio.sleep(0.1)  # tidy: pace

    keeping = asyncio.create_task(keep())
    try:
        yield
    finally:
        keeping.cancel()
        await close_nats(connection)


async def test_no_leader(mesh: RunningMesh, tmp_path: Path) -> None:
    async with running_flow(mesh, tmp_path) as flow:
        async with held_lease(mesh):
            answer = await named(mesh, flow, Cause.NO_LEADER)
        await healthy(mesh, flow)
    assert "ghost" in answer.findings[0].summary
    assert "127.0.0.1:9" in answer.findings[0].evidence[0]
