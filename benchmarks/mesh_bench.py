"""A mesh in a fresh data directory with one flow of the bench, and what can be read from it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.blast import Blast, Body
from benchmarks.load import IngressLoad
from benchmarks.step_counts import StepCounts
from headrace.cli.mesh import Mesh
from headrace.cli.mesh_plan import MeshOptions
from headrace.client import AsyncClient
from headrace.model.flow_spec import FlowSpec
from headrace.wire.flow import flow_spec_to_proto

FLOWS = Path(__file__).parent / "flows"
QUIET_LIMIT_S = 120.0


@dataclass
class BenchMesh:
    """A running mesh and a client of it."""

    mesh: Mesh
    client: AsyncClient
    counts: StepCounts

    @property
    def broker(self) -> tuple[str, int]:
        parts = urlsplit(self.mesh.endpoints.nats)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    async def prepare(self, name: str) -> str:
        """Applies and publishes a flow of the bench; answers its name. It is not started."""
        applied = await self.client.apply(FLOWS / f"{name}.yaml")
        flow = applied.flow.name.removeprefix("flows/")
        if applied.change != "unchanged":
            await self.client.publish(flow)
        return flow

    async def begin(self, name: str, spec: FlowSpec, *, sampled: float | None = None) -> str:
        """Makes a flow of the bench's components (pushed before by `prepare`), and starts it; `sampled`: its ratio of
        traces, if it is not to be the default."""
        await self.client.create_flow(name, flow_spec_to_proto(spec))
        await self.client.publish(name)
        if sampled is not None:
            await self.client.set_sampling(name, ratio=sampled)
        await self.client.start(name)
        return name

    async def load(
        self, flow: str, body: Body, content_type: str, *, trigger: str = "start", ask_one_in: int = 0
    ) -> IngressLoad:
        load = IngressLoad(flow, trigger, body, content_type, ask_one_in)
        await load.connect(*self.broker, together=self.mesh.options.profile == "durable")
        return load

    def blast(self, flow: str, body: Body, content_type: str, *, trigger: str = "start") -> Blast:
        """Load that takes all the flow can do, from a process of its own; `async with`."""
        together = self.mesh.options.profile == "durable"
        return Blast(self.broker, flow, trigger, body, content_type, together=together)

    async def processed(self, flow: str, step: str) -> int:
        """Messages a step has finished, over its instances."""
        status = await self.client.get_status(flow)
        return sum(
            instance.counters["processed"]
            for found in status.steps
            if found.step == step
            for instance in found.instances
        )

    async def finished(self, flow: str) -> dict[str, int]:
        """Calls that ended, by step, since its instances started; asked anew who they are where one is silent."""
        while True:
            if not self.counts.expects(flow):
                status = await self.client.get_status(flow)
                instances = [instance for found in status.steps for instance in found.instances]
                self.counts.expect(flow, {instance.instance for instance in instances})
            try:
                return await self.counts.finished(flow)
            except TimeoutError:
                self.counts.forget(flow)

    async def until_processed(self, flow: str, step: str, count: int, look_s: float = 0.05) -> float:
        """Waits until the step has finished `count` messages; answers the moment (monotonic seconds)."""
        async with asyncio.timeout(QUIET_LIMIT_S):
            while await self.processed(flow, step) < count:
                await asyncio.sleep(look_s)
        return time.monotonic()

    async def pss_mb(self, flow: str) -> dict[str, dict[str, float]]:
        """Proportional set size per step: its sidecar and its component, MB."""
        status = await self.client.get_status(flow)
        return {
            found.step: {
                "sidecar": pss_of(instance.sidecar_pid),
                "component": pss_of(instance.component_pid),
            }
            for found in status.steps
            for instance in found.instances
        }

    async def cpu_s(self, flow: str) -> dict[str, float]:
        """CPU seconds used so far: of the services, and of the flow's sidecars and components together."""
        status = await self.client.get_status(flow)
        instances = [instance for found in status.steps for instance in found.instances]
        return {
            "broker": cpu_of(self.mesh.pid_of("broker")),
            "gateway": cpu_of(self.mesh.pid_of("gateway")),
            "orchestrator": cpu_of(self.mesh.pid_of("orchestrator")),
            "sidecars": sum(cpu_of(instance.sidecar_pid) for instance in instances),
            "components": sum(cpu_of(instance.component_pid) for instance in instances),
        }


def cpu_of(pid: int) -> float:
    """User and system CPU seconds of a process, from /proc/<pid>/stat (proc(5)); 0.0 where it cannot be read."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def pss_of(pid: int) -> float:
    """Proportional set size of a process in MB, from smaps_rollup (proc(5)); 0.0 where it cannot be read."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return round(int(line.split()[1]) / 1024, 1)
    return 0.0


@contextlib.asynccontextmanager
async def bench_mesh(profile: str, told: Callable[[str], None], *, orchestrators: int = 1) -> AsyncIterator[BenchMesh]:
    """A mesh on free loopback ports, gone with its data afterwards."""
    with tempfile.TemporaryDirectory(prefix="hr-bench-") as folder:
        options = MeshOptions(Path(folder) / "data", profile=profile, orchestrators=orchestrators, log_level="warning")
        mesh = Mesh(options, on_notice=told)
        async with mesh:
            client = AsyncClient(mesh.endpoints.any_api, timeout_s=60.0)
            parts = urlsplit(mesh.endpoints.nats)
            counts = await StepCounts.connect(parts.hostname or "", parts.port or 0)
            try:
                async with client:
                    yield BenchMesh(mesh, client, counts)
            finally:
                counts.close()
