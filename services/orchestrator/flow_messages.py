"""Documents and snapshots as messages of `headrace.api.flow.v1`."""

from __future__ import annotations

from collections.abc import Sequence

from google.longrunning import operations_pb2
from google.protobuf import any_pb2, timestamp_pb2
from google.rpc import status_pb2

from headrace.api.flow.v1 import flow_pb2
from headrace.edge.error_interceptor import status_of
from headrace.model.deployment import DeploymentPlan, DeploymentState, PinPlan
from headrace.model.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    Exhausted,
    HeadraceError,
    InvalidInput,
    NotFound,
    Unavailable,
    WrongState,
)
from headrace.wire.flow import flow_spec_to_proto, flow_type_to_proto
from services.orchestrator.domain.documents import FlowDocument, OperationDocument, OperationFailure, VersionDocument
from services.orchestrator.domain.flow_verbs import etag_of

_ERRORS: dict[str, type[HeadraceError]] = {
    kind.code: kind
    for kind in (InvalidInput, NotFound, WrongState, Conflict, Exhausted, DeadlineExceeded, Unavailable, Cancelled)
}


def timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    message = timestamp_pb2.Timestamp()
    message.FromNanoseconds(int(seconds * 1e9))
    return message


def flow_message(document: FlowDocument) -> flow_pb2.Flow:
    message = flow_pb2.Flow(
        name=f"flows/{document.flow}",
        state=flow_pb2.FlowState.Value(f"FLOW_STATE_{document.state}"),
        latest_version=document.latest_version,
        running_version=document.active_version,
        active_deployment=document.active,
        create_time=timestamp(document.created_at),
        etag=etag_of(document),
        type=flow_type_to_proto(document.flow_type),
        running_operation=running_operation(document),
    )
    if document.draft is not None:
        message.draft.CopyFrom(flow_spec_to_proto(document.draft))
    return message


def running_operation(document: FlowDocument) -> str:
    """`operations/{id}` of what is at work on the flow; empty when nothing is."""
    return f"operations/{document.operation.id}" if document.operation is not None else ""


def version_message(document: VersionDocument) -> flow_pb2.Version:
    return flow_pb2.Version(
        name=f"flows/{document.flow}/versions/{document.number}",
        number=document.number,
        spec=flow_spec_to_proto(document.spec),
        create_time=timestamp(document.created_at),
    )


def pin_message(step: str, pin: PinPlan) -> flow_pb2.Pin:
    return flow_pb2.Pin(
        step=step,
        component=pin.component,
        revision_number=pin.revision_number,
        digest=pin.digest,
        interpreter=pin.interpreter,
        sdk_version=pin.sdk_version,
        sidecar_version=pin.sidecar_version,
    )


def deployment_message(
    flow: str, number: int, plan: DeploymentPlan | None, state: DeploymentState | None, plan_digest: str
) -> flow_pb2.Deployment:
    """`plan_digest`: of the plan as it is stored."""
    message = flow_pb2.Deployment(name=f"flows/{flow}/deployments/{number}", number=number)
    if plan is not None:
        message.version = plan.version
        message.plan_digest = plan_digest
        message.pins.extend(pin_message(step.name, step.pin) for step in plan.steps)
    if state is not None:
        message.phase = flow_pb2.DeploymentPhase.Value(f"DEPLOYMENT_PHASE_{state.phase}")
        message.cause = state.cause
        message.create_time.CopyFrom(timestamp(state.created_at))
        message.generation = state.generation
        message.start_ms.update(state.start_ms)
    return message


def operation_message(
    document: OperationDocument,
    steps: dict[str, str] | None = None,
    *,
    draining: Sequence[str] = (),
    difference: flow_pb2.FlowDifference | None = None,
) -> operations_pb2.Operation:
    """Metadata is a FlowOperationMetadata, the response a FlowOperationResult."""
    metadata = flow_pb2.FlowOperationMetadata(
        verb=document.verb,
        flow=f"flows/{document.flow}",
        version=document.version,
        deployment=document.deployment,
        steps=steps or {},
        create_time=timestamp(document.created_at),
        draining=draining,
        difference=difference,
    )
    message = operations_pb2.Operation(
        name=f"operations/{document.id}" if document.id else "", done=document.done, metadata=_packed(metadata)
    )
    if document.failure is not None:
        message.error.CopyFrom(failure_status(document.failure))
    elif document.done:
        result = flow_pb2.FlowOperationResult(
            flow=f"flows/{document.flow}",
            version=document.version,
            deployment=document.deployment,
            dropped=document.dropped,
            dead_lettered=document.dead_lettered,
            moved=document.moved,
            difference=difference,
            message=document.message,
        )
        message.response.CopyFrom(_packed(result))
    return message


def failure_status(failure: OperationFailure) -> status_pb2.Status:
    """The status with the same details that a refused call would have."""
    kind = _ERRORS.get(failure.code, HeadraceError)
    return status_of(
        kind(failure.message, reason=failure.reason, next_step=failure.next_step, metadata=failure.metadata)
    )


def _packed(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]
    return packed
