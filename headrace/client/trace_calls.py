"""Executions and their sampling: `TraceService`."""

from __future__ import annotations

from headrace.api.trace.v1 import trace_pb2, trace_pb2_grpc
from headrace.client.session import Session, resource

ANY_FLOW = "-"


class TraceCalls(Session):
    """What the mesh remembers are the last minutes; what was sampled is in Jaeger besides."""

    async def get_trace(self, execution: str, *, flow: str = ANY_FLOW) -> trace_pb2.Execution:
        """One execution, hop by hop; `execution` is its id, or its name. NotFound when nothing is remembered of it."""
        name = execution if "/" in execution else f"{resource('flows', flow)}/executions/{execution}"
        return await self._call(self._traces().GetTrace, trace_pb2.GetTraceRequest(name=name))

    async def list_executions(
        self, flow: str = ANY_FLOW, *, where: str = "", limit: int = 0
    ) -> trace_pb2.ListExecutionsResponse:
        """The newest executions of a flow, or of all, that fit a filter such as `step=price AND error=true`; at most
        `limit` (20, 100 at most), without their hops."""
        request = trace_pb2.ListExecutionsRequest(parent=resource("flows", flow), filter=where, limit=limit)
        return await self._call(self._traces().ListExecutions, request)

    async def get_sampling(self, flow: str) -> trace_pb2.Sampling:
        """A flow's ratio, and what its capture has caught."""
        request = trace_pb2.GetSamplingRequest(flow=resource("flows", flow))
        return await self._call(self._traces().GetSampling, request)

    async def set_sampling(self, flow: str, ratio: float) -> trace_pb2.Sampling:
        """Changes the share of executions whose trace is sampled, 0 to 1, from now on."""
        request = trace_pb2.UpdateSamplingRequest(flow=resource("flows", flow), ratio=ratio)
        return await self._call(self._traces().UpdateSampling, request)

    async def capture_executions(
        self, flow: str, count: int, *, where: str = "", within_s: float = 0.0
    ) -> trace_pb2.Sampling:
        """Keeps the next `count` executions that fit, at any ratio; `get_sampling` tells which were caught.
        `within_s`: how long to wait for them, 0 for ten minutes."""
        request = trace_pb2.CaptureExecutionsRequest(flow=resource("flows", flow), count=count, where=where)
        if within_s:
            request.within.FromMilliseconds(int(within_s * 1000))
        return await self._call(self._traces().CaptureExecutions, request)

    def _traces(self) -> trace_pb2_grpc.TraceServiceAsyncStub:
        return trace_pb2_grpc.TraceServiceStub(self.channel)
