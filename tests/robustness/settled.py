"""Whether nothing half-made is left of a flow: API, processes, broker's assets and pins, each looked at by itself."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgspec
from nats.aio.client import Client as Nats

from headrace.api.flow.v1 import flow_pb2
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import bucket_names, subjects
from headrace.model.errors import Unavailable
from tests.robustness.pinned_flow import PinnedFlow
from tests.support.mesh import RunningMesh, owner_of

WORKSPACE = "default"


class Inspector:
    """`async with Inspector(mesh) as inspect: await eventually(lambda: inspect.settled(flow))`."""

    def __init__(self, mesh: RunningMesh) -> None:
        self._mesh = mesh
        self._connection: Nats

    async def __aenter__(self) -> Inspector:
        self._connection = await connect_nats(self._mesh.endpoints.nats, "inspector")
        self._assets = JetStreamAssets(self._connection, timeout_s=2.0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await close_nats(self._connection)

    @property
    def connection(self) -> Nats:
        return self._connection

    async def settled(self, flow: PinnedFlow, *, idle: bool = True) -> int:
        """The one deployment that is left, once all of it is there and nothing of any other; with `idle`, nothing
        waits either. AssertionError says what is not so (yet)."""
        try:
            active = await self._api(flow, idle)
            self._processes(flow.name, active)
            await self._broker(flow.name, active)
            await self._pins(flow.name, active)
        except Unavailable as error:
            raise AssertionError(str(error)) from error
        return active

    async def _api(self, flow: PinnedFlow, idle: bool) -> int:
        status = await flow.client.get_status(flow.name)
        active = await flow.active()
        assert status.state == flow_pb2.FLOW_STATE_RUNNING, status.state
        assert status.ingress_owner == f"d{active}", status.ingress_owner
        assert not status.problems, list(status.problems)
        left = [item.deployment.number for item in status.deployments]
        assert left == [active], f"deployments {left} are left, d{active} runs"
        waiting = sum(item.waiting + item.in_flight for item in status.deployments)
        assert not (idle and waiting), f"{waiting} messages wait"
        return active

    def _processes(self, flow: str, active: int) -> None:
        owners = [owner for pid in self._mesh.processes() if (owner := owner_of(pid))[0] == flow]
        strays = sorted({f"d{number}.{step}" for _, number, step in owners if number != active})
        assert not strays, f"processes of {strays} are left, d{active} runs"
        for step in ("hook", "work", "effect"):
            for role in ("sidecar", "component"):
                assert self._mesh.pids_of(role, flow, step, active), f"no {role} of {step} runs"

    async def _broker(self, flow: str, active: int) -> None:
        stream = subjects.flow_stream(WORKSPACE, flow)
        info = await self._assets.stream_info(stream)
        assert info is not None
        owners = {subject.split(".")[3] for subject in info["config"]["subjects"]}
        kept = {owner for owner in owners if not owner.startswith("p")}
        assert kept == {"in", subjects.SNAPSHOTS, f"d{active}", f"c{active}"}, owners
        names = {str(consumer["name"]) for consumer in await self._assets.consumers(stream)}
        wanted = {subjects.step_consumer(active, step) for step in ("hook", "work", "effect")}
        assert names == wanted, f"consumers {sorted(names ^ wanted)} are too many or missing"

    async def _pins(self, flow: str, active: int) -> None:
        bucket = await KvBucket.open(self._connection, bucket_names.pin_bucket(WORKSPACE))
        holders = {key.split(".")[2] for key in await bucket.keys(f"*.{flow}.*")}
        assert {holder for holder in holders if holder.startswith("d")} == {f"d{active}"}, holders


PhaseHeard = Callable[[int, str], None]


class PhaseWatch:
    """Calls back as soon as the broker has stored that a deployment of a flow entered a phase."""

    def __init__(self, connection: Nats, flow: str) -> None:
        self._connection = connection
        self._subject = f"$KV.{bucket_names.deployment_bucket(WORKSPACE)}.{bucket_names.state_key(flow, 0)[:-1]}*"
        self._on_phase: PhaseHeard | None = None

    async def __aenter__(self) -> PhaseWatch:
        self._subscription = await self._connection.subscribe(self._subject, cb=self._heard)
        await self._connection.flush()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._subscription.unsubscribe()

    def when(self, on_phase: PhaseHeard) -> None:
        """`on_phase(deployment, phase)` from now on."""
        self._on_phase = on_phase

    async def _heard(self, message: Any) -> None:
        if not message.data or self._on_phase is None:
            return
        state = msgspec.json.decode(message.data)
        self._on_phase(int(message.subject.rpartition(".")[2]), str(state["phase"]))
