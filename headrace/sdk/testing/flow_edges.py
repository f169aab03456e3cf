"""What a flow does between its steps, in a test: conditions, mappings, passthrough; and what steps keep."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.api.component.v1 import component_pb2
from headrace.model.expressions import CODE
from headrace.model.flow_spec import FlowSpec, StepSpec
from headrace.model.limits import MAX_PASSTHROUGH_BYTES
from headrace.model.message_ids import output_message_id
from headrace.model.slots import keying
from headrace.model.step_snapshot import Save, SnapshotError, StepSnapshot, saved
from headrace.sdk.body import JSON
from headrace.sdk.testing.results import CallResult, Failure, Output
from headrace.wire.dead_letter import failed_attempt
from headrace.wire.edge_program import Body, EdgeProgram
from headrace.wire.error_message import CONTENT_TYPE, OUTPUT, FailedInput, error_body

PASSTHROUGH_TOO_LARGE = "PASSTHROUGH_TOO_LARGE"


class EdgeFailed(Exception):
    """The message is given up with `code`."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class FlowEdges:
    """Of one flow. Expressions run here without the limits of time and memory that the mesh sets."""

    def __init__(self, spec: FlowSpec) -> None:
        self._passes = spec.passthrough
        self._programs = {
            step.name: EdgeProgram([(name, edge.condition, edge.mapping) for name, edge in step.edges.items()])
            for step in spec.steps
            if step.edges
        }

    def pass_on(
        self, step: StepSpec, parent: component_pb2.Input, outputs: Sequence[Output]
    ) -> list[tuple[str, component_pb2.Input]]:
        """Receivers, and what each gets; EdgeFailed if an output cannot go on, and then nothing of them does."""
        found = []
        for index, output in enumerate(outputs):
            passed = self._passed(step, parent, output)
            bodies = self._bodies(step, parent, output)
            for receiver in step.to:
                body = bodies.get(receiver, True)
                if body is not None:
                    found.append((receiver, _message(parent, step, receiver, index, output, body, passed)))
        return found

    def _passed(self, step: StepSpec, parent: component_pb2.Input, output: Output) -> list[component_pb2.EarlierOutput]:
        if not self._passes:
            return []
        own = component_pb2.EarlierOutput(
            step=step.name,
            body=output.sent_body,
            content_type=output.content_type,
            headers=output.headers,
            attachments=output.references,
        )
        passed = [*parent.passthrough, own]
        size = sum(item.ByteSize() for item in passed)
        if size > MAX_PASSTHROUGH_BYTES:
            text = f"an output of step {step.name!r} would carry {size} bytes, more than {MAX_PASSTHROUGH_BYTES}"
            raise EdgeFailed(PASSTHROUGH_TOO_LARGE, text)
        return passed

    def _bodies(self, step: StepSpec, parent: component_pb2.Input, output: Output) -> dict[str, Body]:
        program = self._programs.get(step.name)
        if program is None:
            return {}
        message = {"id": parent.message_id, "execution": parent.execution_id, "sender": step.name}
        passed = None
        if self._passes:
            passed = [(item.step, item.body, item.content_type, dict(item.headers)) for item in parent.passthrough]
        error, bodies = program.route(output.body, output.content_type, output.headers, message, passed)
        if bodies is None:
            raise EdgeFailed(CODE, f"step {step.name!r}: {error}")
        return dict(zip(step.edges, bodies, strict=True))


def error_message(
    step: StepSpec, handler: str, message: component_pb2.Input, failure: Failure, attempts: int
) -> component_pb2.Input:
    """What its error step gets of a message that a step failed for good; of the attempts the last, without a time."""
    failed = FailedInput(
        message.body,
        message.content_type,
        message.message_id,
        message.execution_id,
        step.name,
        step.component,
        "",
        [failed_attempt(attempts, failure.code, failure.message, 0)],
    )
    body, _ = error_body(failed, failure.code, failure.message, failure.status or 500)
    return component_pb2.Input(
        body=body,
        content_type=CONTENT_TYPE,
        headers=message.headers,
        message_id=output_message_id(message.message_id, step.name, OUTPUT, handler),
        execution_id=message.execution_id,
        wants_reply=message.wants_reply,
        passthrough=message.passthrough,
    )


class KeptSnapshots:
    """What the steps of a flow keep, for as long as its harness lives."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], StepSnapshot] = {}

    def give(self, step: StepSpec, message: component_pb2.Input) -> None:
        """Puts into the message what its step keeps for it."""
        kept = self._kept.get(_place(step, message))
        message.ClearField("snapshot")
        if kept is not None:
            message.snapshot.json, message.snapshot.revision = bytes(kept.value).decode(), kept.revision

    def save(self, step: StepSpec, message: component_pb2.Input, called: CallResult) -> CallResult:
        """Keeps what a call that ended well has saved; AssertionError where the mesh would refuse it."""
        saves = [Save(item.json, item.merge, item.if_revision) for item in called.raw_saves]
        if saves and called.error is None and called.rebound is None:
            place = _place(step, message)
            try:
                self._kept[place] = saved(self._kept.get(place, StepSnapshot()), saves)
            except SnapshotError as error:
                raise AssertionError(f"step {step.name!r}: {error}") from None
        return called


def _place(step: StepSpec, message: component_pb2.Input) -> tuple[str, str]:
    if not step.key:
        return step.name, ""
    return step.name, keying(step.key, step.slot_count).place(message.headers, message.body, message.message_id).key


def _message(
    parent: component_pb2.Input,
    step: StepSpec,
    receiver: str,
    index: int,
    output: Output,
    body: bool | bytes,
    passed: list[component_pb2.EarlierOutput],
) -> component_pb2.Input:
    name = f"k:{output.key}" if output.key else str(index)
    return component_pb2.Input(
        body=output.sent_body if isinstance(body, bool) else body,
        content_type=output.content_type if isinstance(body, bool) else JSON,
        headers=output.headers,
        message_id=output_message_id(parent.message_id, step.name, name, receiver),
        execution_id=parent.execution_id,
        wants_reply=parent.wants_reply,
        passthrough=passed,
        attachments=[item for item in output.references if isinstance(body, bool) or not item.is_body],
    )
