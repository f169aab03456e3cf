"""SnapshotService: what steps keep, read from the flow's stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headrace.api.snapshot.v1 import snapshot_pb2, snapshot_pb2_grpc
from headrace.edge.grpc_server import GrpcServer
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.model import subjects
from headrace.model.errors import InvalidInput, NotFound, WrongState
from headrace.model.names import check_name
from headrace.model.step_snapshot import ANY, StepSnapshot, decode_snapshot, snapshot_number
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.rpc_rollouts import flow_of
from services.orchestrator.stores import Stores

SERVICE_NAME = "headrace.api.snapshot.v1.SnapshotService"
MOST = 1_000
MOST_BYTES = 3 * 1024 * 1024


def add_snapshots(server: GrpcServer, stores: Stores, assets: JetStreamAssets) -> None:
    """Serves them."""
    rpc = SnapshotRpc(stores, assets)
    server.add(snapshot_pb2_grpc.add_SnapshotServiceServicer_to_server, rpc, SERVICE_NAME)


@dataclass
class SnapshotRpc:
    """The servicer."""

    stores: Stores
    assets: JetStreamAssets

    async def ListSnapshots(self, request: Any, context: Any) -> snapshot_pb2.ListSnapshotsResponse:
        del context
        flow = flow_of(request.parent, "parent")
        await self.stores.existing_flow(flow)
        wanted = self._filter(flow, request.step, request.key)
        answer, size, sequence = snapshot_pb2.ListSnapshotsResponse(), 0, 1
        while True:
            found = await self.assets.next_message(self._stream(flow), wanted, sequence)
            if found is None:
                break
            sequence = found.sequence + 1
            step, number = subjects.parse_snapshot_subject(found.subject)
            if number == ANY:
                continue
            size += len(found.data)
            if len(answer.snapshots) >= MOST or size > MOST_BYTES:
                answer.truncated = True
                break
            answer.snapshots.append(_message(flow, step, _decoded(found.data)))
        answer.snapshots.sort(key=lambda snapshot: (snapshot.step, snapshot.key))
        return answer

    async def ResetSnapshots(self, request: Any, context: Any) -> snapshot_pb2.ResetSnapshotsResponse:
        del context
        flow = flow_of(request.parent, "parent")
        check_name("step", request.step)
        document, _ = await self.stores.existing_flow(flow)
        if document.state != FlowState.STOPPED:
            raise WrongState(
                f"flow {flow!r} is {document.state}: its steps go by the snapshots they know",
                reason="NOT_STOPPED",
                next_step=f"Stop it first: headrace flow stop {flow}",
            )
        wanted = self._filter(flow, request.step, request.key)
        kept = await self.ListSnapshots(
            snapshot_pb2.ListSnapshotsRequest(parent=request.parent, step=request.step, key=request.key), None
        )
        if not kept.snapshots:
            key = f" for key {request.key!r}" if request.key else ""
            raise NotFound(
                f"step {request.step!r} of flow {flow!r} keeps no snapshot{key}",
                reason="NO_SNAPSHOT",
                next_step=f"See what there is: headrace snapshot show {flow}",
            )
        purged = await self.assets.purge(self._stream(flow), wanted)
        # The mark that a keyed step keeps anything at all went with them.
        marks = 0 if request.key or any(not snapshot.key for snapshot in kept.snapshots) else 1
        return snapshot_pb2.ResetSnapshotsResponse(reset=max(0, purged - marks))

    def _stream(self, flow: str) -> str:
        return subjects.flow_stream(self.stores.workspace, flow)

    def _filter(self, flow: str, step: str, key: str) -> str:
        if step:
            check_name("step", step)
        if key and not step:
            raise InvalidInput.at("key", key, "is a key of which step?", next_step="Name the step too")
        if key:
            return subjects.snapshot_subject(self.stores.workspace, flow, step, snapshot_number(key))
        return subjects.snapshot_filter(self.stores.workspace, flow, step)


def _decoded(raw: bytes) -> StepSnapshot:
    try:
        return decode_snapshot(raw)
    except ValueError:
        return StepSnapshot()


def _message(flow: str, step: str, snapshot: StepSnapshot) -> snapshot_pb2.Snapshot:
    message = snapshot_pb2.Snapshot(
        flow=f"flows/{flow}",
        step=step,
        key=snapshot.key,
        json=bytes(snapshot.value).decode(),
        revision=snapshot.revision,
        deployment=snapshot.deployment,
        version=snapshot.version,
        code=snapshot.code,
        message_id=snapshot.message_id,
    )
    message.time.FromNanoseconds(snapshot.at_unix_ns)
    return message
