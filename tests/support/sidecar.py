"""A real sidecar with a real component on a real broker, without orchestrator, agent or registry.

`SidecarBench` starts the sidecar as a process on what is made by hand (`step_assets`); `step_messages` feeds inputs and
reads what comes of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from headrace.api.sidecar.v1 import sidecar_pb2, sidecar_pb2_grpc
from headrace.edge.child_process import ChildProcess, Command, own_module
from headrace.edge.grpc_channel import open_channel
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import bucket_names
from headrace.model.names import instance_name
from tests.support.eventually import eventually
from tests.support.step_assets import STEP, WORKSPACE
from tests.support.step_messages import StepMessages


@dataclass
class SidecarBench(StepMessages):
    """Set the fields before `prepare`."""

    registry: str = ""
    component_start_limit_s: float = 20.0
    log_level: str = "warning"
    variables: dict[str, str] = field(default_factory=dict)
    """Further variables of the sidecar's environment."""
    # HEADRACE_FAULTS of the next start (docs/faults.md).
    faults: str = ""
    joined: bool = field(default=False, init=False)
    sidecar: ChildProcess | None = field(default=None, init=False)
    address: str = field(default="", init=False)
    output: list[bytes] = field(default_factory=list, init=False)

    async def prepare(self) -> None:
        """Connects, makes stream, consumers and documents, and puts the bundle into the cache."""
        self.connection = await connect_nats(self.nats_url, "bench")
        self.assets = JetStreamAssets(self.connection)
        self.deployments = await KvBucket.open(self.connection, bucket_names.deployment_bucket(WORKSPACE))
        self.make_bundle()
        await self.make_streams()
        await self.write_plan()
        await self.write_state(self.phase)
        await self.listen_for_replies()

    @property
    def run_dir(self) -> Path:
        """Short, since socket paths have a limit."""
        return Path(f"/tmp/hr-{os.getpid()}-{abs(hash(self.folder)) % 10**8}")

    def environment(self) -> dict[str, str | None]:
        return {
            **self.variables,
            "HEADRACE_NATS_URL": self.nats_url,
            "HEADRACE_FAULTS": self.faults,
            "HEADRACE_REGISTRY": self.registry,
            "HEADRACE_CACHE_DIR": str(self.cache),
            "HEADRACE_RUN_DIR": str(self.run_dir),
            "HEADRACE_COMPONENT_START_LIMIT_S": str(self.component_start_limit_s),
            "HEADRACE_WORKSPACE": WORKSPACE,
            "HEADRACE_FLOW": self.flow,
            "HEADRACE_DEPLOYMENT": str(self.deployment),
            "HEADRACE_STEP": STEP,
            "HEADRACE_REPLICA": str(self.replica),
            "HEADRACE_PLAN_DIGEST": self.plan_digest,
            "HEADRACE_INSTANCE": instance_name(WORKSPACE, self.flow, self.deployment, STEP, self.replica),
        }

    async def start(self, *, ready_within_s: float = 20.0) -> None:
        """Starts the sidecar's process; returns when it serves its Lifecycle."""
        command = Command(
            own_module("services.sidecar", "--log-level", self.log_level),
            self.environment(),
            on_output=self.output.append,
        )
        self.sidecar = ChildProcess.spawn(command, readiness=True)
        try:
            facts = await self.sidecar.ready(ready_within_s)
        except ConnectionError as error:
            raise AssertionError(self.sidecar_log()) from error
        self.address = str(facts["address"])
        self.channel = open_channel(self.address)
        self.lifecycle = sidecar_pb2_grpc.LifecycleServiceStub(self.channel)  # type: ignore[no-untyped-call]

    def sidecar_log(self) -> str:
        return b"".join(self.output).decode(errors="replace")

    async def status(self) -> sidecar_pb2.InstanceStatus:
        answer = await self.lifecycle.GetStatus(sidecar_pb2.GetStatusRequest())
        return answer.status  # type: ignore[no-any-return]

    async def until(
        self, check: Callable[[sidecar_pb2.InstanceStatus], object], *, within_s: float = 15.0
    ) -> sidecar_pb2.InstanceStatus:
        """The first status that passes the check; the sidecar's log is shown when none does."""
        seen: list[Any] = []

        async def look() -> bool:
            try:
                seen[:] = [await self.status()]
            except grpc.aio.AioRpcError as error:
                raise AssertionError(f"{error.code()}: {error.details()}") from error
            return bool(check(seen[0]))

        try:
            await eventually(look, within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{seen[0] if seen else ''}\n{self.sidecar_log()}") from error
        return seen[0]  # type: ignore[no-any-return]

    async def until_active(self, *, within_s: float = 15.0) -> sidecar_pb2.InstanceStatus:
        return await self.until(lambda status: status.progress == sidecar_pb2.PROGRESS_ACTIVE, within_s=within_s)

    async def run(self) -> None:
        """`prepare`, `start` and `until_active`."""
        await self.prepare()
        await self.start()
        await self.until_active()

    async def join(self, other: SidecarBench, *, replica: int, owned: dict[int, int]) -> None:
        """Is a further instance of another bench's step, on its stream and documents, with these slots."""
        self.connection, self.assets, self.deployments = other.connection, other.assets, other.deployments
        self.replica, self.replicas, self.owned = replica, replica + 1, owned
        self.stream_config, self.joined = other.stream_config, True
        self.make_bundle()
        await self.write_plan()
        await self.write_state(self.phase, other.generation + 1)

    def pause(self) -> None:
        """SIGSTOP of the sidecar; its component goes on."""
        assert self.sidecar is not None
        self.sidecar.signal(19)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.sidecar is not None
        self.sidecar.signal(18)

    async def kill_sidecar(self) -> None:
        """kill -9 of the sidecar alone; its component follows by the parent-death signal."""
        assert self.sidecar is not None
        self.sidecar.signal(9)
        await self.sidecar.wait()
        await self.channel.close()

    async def close(self) -> None:
        if self.sidecar is not None:
            with contextlib.suppress(AttributeError):
                await self.channel.close()
            await self.sidecar.end(3.0)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        with contextlib.suppress(AttributeError):
            if not self.joined:
                await close_nats(self.connection)


@contextlib.asynccontextmanager
async def sidecar_bench(nats_url: str, folder: Path, **fields: Any) -> AsyncIterator[SidecarBench]:
    """A bench that is closed at the end; call `run`, or `prepare` and `start`."""
    bench = SidecarBench(nats_url, folder, **fields)
    try:
        yield bench
    finally:
        async with asyncio.timeout(20):
            await bench.close()
