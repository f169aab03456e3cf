"""Calls that take a bench's sidecar from one stage of its life to the next."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.model.deployment import DeploymentPhase
from tests.support.sidecar import SidecarBench

PREPARING = DeploymentPhase.PREPARING


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """ErrorInfo's reason of a refused call."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    raise AssertionError("no ErrorInfo")


async def prepare(bench: SidecarBench, generation: int = 1) -> sidecar_pb2.InstanceStatus:
    answer = await bench.lifecycle.Prepare(sidecar_pb2.PrepareRequest(generation=generation))
    return answer.status  # type: ignore[no-any-return]


async def until_warm(bench: SidecarBench) -> sidecar_pb2.InstanceStatus:
    return await bench.until(lambda status: status.progress == sidecar_pb2.PROGRESS_WARM)


async def until_failed(bench: SidecarBench) -> sidecar_pb2.InstanceStatus:
    await prepare(bench)
    return await bench.until(lambda status: status.state == sidecar_pb2.STEP_STATE_FAILED)
