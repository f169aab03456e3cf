"""What steps keep between messages."""

from __future__ import annotations

from typing import Any

from headrace.api.snapshot.v1 import snapshot_pb2, snapshot_pb2_grpc
from headrace.client.session import Session, resource


class SnapshotCalls(Session):
    """Snapshots are named by flow, step and, of a step that has one, key."""

    async def list_snapshots(self, flow: str, step: str = "", key: str = "") -> snapshot_pb2.ListSnapshotsResponse:
        """At most 1000, by step; `truncated` where there are more."""
        request = snapshot_pb2.ListSnapshotsRequest(parent=resource("flows", flow), step=step, key=key)
        answer: snapshot_pb2.ListSnapshotsResponse = await self._call(self._snapshots().ListSnapshots, request)
        return answer

    async def reset_snapshots(self, flow: str, step: str, key: str = "") -> int:
        """Forgets what a step keeps (for one key, or all of it); only while the flow is stopped. Answers how many."""
        request = snapshot_pb2.ResetSnapshotsRequest(parent=resource("flows", flow), step=step, key=key)
        return int((await self._call(self._snapshots().ResetSnapshots, request)).reset)

    def _snapshots(self) -> Any:
        return snapshot_pb2_grpc.SnapshotServiceStub(self.channel)
