"""Why a flow stands still or is slow: `DiagnosisService`."""

from __future__ import annotations

from headrace.api.diagnosis.v1 import diagnosis_pb2, diagnosis_pb2_grpc
from headrace.client.session import Session, resource


class DiagnosisCalls(Session):
    """Answers come within a few seconds, also while the broker does not answer or nobody leads."""

    async def explain(self, flow: str, *, step: str = "") -> diagnosis_pb2.ExplainFlowResponse:
        """Causes with their evidence and what to type next, most likely first; with `step` only what holds that up."""
        stub: diagnosis_pb2_grpc.DiagnosisServiceAsyncStub = diagnosis_pb2_grpc.DiagnosisServiceStub(self.channel)
        request = diagnosis_pb2.ExplainFlowRequest(name=resource("flows", flow), step=step)
        return await self._call(stub.ExplainFlow, request)
