"""Where a sidecar's code comes from: the registry once, the cache ever after, never other than what is pinned."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.bundle import pack_folder
from headrace.edge.child_process import ChildProcess, Command, own_module
from headrace.edge.grpc_channel import open_channel
from tests.support.sidecar import sidecar_bench
from tests.support.sidecar_life import PREPARING, until_failed
from tests.support.step_assets import ECHO


@contextlib.asynccontextmanager
async def registry_process(nats_url: str) -> AsyncIterator[tuple[ChildProcess, str]]:
    """A real registry and its address."""
    registry = ChildProcess.spawn(
        Command(own_module("services.registry", "--nats", nats_url, "--listen", "127.0.0.1:0")), readiness=True
    )
    try:
        yield registry, str((await registry.ready(20))["address"])
    finally:
        await registry.end(2.0)


async def test_the_bundle_comes_from_the_registry_once(broker: BrokerProcess, tmp_path: Path) -> None:
    async with (
        registry_process(broker.url) as (registry, address),
        sidecar_bench(broker.url, tmp_path, registry=address) as bench,
    ):
        await bench.prepare()
        for path in bench.cache.glob("bundles/*"):
            path.rename(tmp_path / path.name)  # the cache is empty now
        with pack_folder(bench.folder / "bundle") as packed:
            await push(address, packed.path, packed.digest)
        await bench.start()
        active = await bench.until_active()
        assert active.stage_ms["fetch"] > 0
        assert [path.name for path in bench.cache.glob("bundles/*") if path.is_dir()] == [bench.digest[7:]]
        await registry.end(2.0)
        # A verified bundle needs no registry.
        await bench.kill_sidecar()
        await bench.start()
        await bench.until_active()
        await bench.inject(b"in")
        await bench.take(1)


async def test_a_changed_file_in_the_cache_is_noticed_and_never_runs(broker: BrokerProcess, tmp_path: Path) -> None:
    async with (
        registry_process(broker.url) as (_, address),
        sidecar_bench(broker.url, tmp_path, registry=address) as bench,
    ):
        await bench.prepare()
        with pack_folder(bench.folder / "bundle") as packed:
            await push(address, packed.path, packed.digest)
        (changed,) = bench.cache.glob("bundles/*/work.py")
        changed.chmod(0o644)
        changed.write_text(ECHO.replace("emit(body)", "emit(b'changed')"))
        await bench.start()
        await bench.until_active()
        await bench.inject(b"in")
        (arrived,) = await bench.take(1)
        assert arrived.envelope.body == b"in"


async def test_a_bundle_that_the_registry_does_not_have_is_failed(broker: BrokerProcess, tmp_path: Path) -> None:
    async with (
        registry_process(broker.url) as (_, address),
        sidecar_bench(broker.url, tmp_path, registry=address, phase=PREPARING) as bench,
    ):
        await bench.prepare()
        for path in bench.cache.glob("bundles/*"):
            path.rename(tmp_path / path.name)
        await bench.start()
        failed = await until_failed(bench)
        assert failed.cause_reason == "BUNDLE_NOT_FETCHED"
        assert bench.digest in failed.cause
        assert list(bench.cache.glob("bundles/*.part*")) == []


async def push(address: str, path: Path, digest: str) -> None:
    from headrace.api.registry.v1 import registry_pb2, registry_pb2_grpc

    async def parts() -> Any:
        header = registry_pb2.PushHeader(component="bench", digest=digest)
        yield registry_pb2.PushRevisionRequest(header=header)
        yield registry_pb2.PushRevisionRequest(chunk=path.read_bytes())

    async with open_channel(address) as channel:
        stub = registry_pb2_grpc.RegistryServiceStub(channel)  # type: ignore[no-untyped-call]
        await stub.PushRevision(parts(), timeout=20)


async def test_a_plan_of_another_digest_is_refused(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, phase=PREPARING) as bench:
        await bench.prepare()
        bench.plan_digest = "sha256:" + "0" * 64
        await bench.start()
        failed = await until_failed(bench)
        assert failed.cause_reason == "PLAN_MISMATCH"
