"""An operation as people see it: how far each step is, what still drains, what the new deployment runs otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.api.flow.v1 import flow_pb2
from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase
from headrace.model.deployment_difference import Difference, FieldDifference, compare
from services.orchestrator.domain.assets import waits_for_older
from services.orchestrator.domain.documents import OperationDocument, is_held
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.flow_messages import operation_message
from services.orchestrator.instance_observer import InstanceObserver
from services.orchestrator.snapshot_reader import SnapshotReader

# The least of a step's instances is what the step is shown as.
_ORDER = (
    "failed",
    "not up",
    "up",
    "fetching",
    "building",
    "starting",
    "init",
    "self-check",
    "warm",
    "active",
    "draining",
    "drained",
)


@dataclass
class OperationView:
    """Puts an operation's message together; plans are immutable and remembered by the reader."""

    reader: SnapshotReader
    observer: InstanceObserver

    async def message(self, document: OperationDocument) -> Any:
        """A `google.longrunning.Operation`."""
        steps: dict[str, str] = {}
        draining: list[str] = []
        if document.deployment and not document.done:
            snapshot = await self.reader.read(document.flow)
            if snapshot is not None:
                steps = progress_words(snapshot, self.observer.statuses, document.deployment)
                draining = draining_lines(snapshot)
        difference = await self._difference(document)
        return operation_message(
            document,
            steps,
            draining=draining,
            difference=difference_message(difference) if difference is not None else None,
        )

    async def _difference(self, document: OperationDocument) -> Difference | None:
        if not document.against or not document.deployment:
            return None
        flow, stores = document.flow, self.reader.stores
        old, new, old_state, new_state = await asyncio.gather(
            self.reader.plan(flow, document.against),
            self.reader.plan(flow, document.deployment),
            stores.state(flow, document.against),
            stores.state(flow, document.deployment),
        )
        if old is None or new is None or old_state is None or new_state is None:
            return None
        return compare(old, old_state[0].replicas, new, new_state[0].replicas)


def progress_words(
    snapshot: Snapshot, reports: Mapping[str, sidecar_pb2.InstanceStatus], deployment: int
) -> dict[str, str]:
    """Step to how far it is; `waits for deployment 1` while older ones must drain first."""
    view = snapshot.deployments.get(deployment)
    if view is None or view.plan is None or view.state is None:
        return {}
    older = ", ".join(str(number) for number in snapshot.flow.live if number < deployment)
    if is_held(snapshot.flow, deployment):
        return {step.name: f"waits for deployment {older}" for step in view.plan.steps}
    words: dict[str, str] = {}
    for instance in snapshot.wanted_instances(deployment):
        running = snapshot.instances.get(instance.name)
        report = reports.get(instance.name) if running is not None and running.up else None
        word = _word(report) if report is not None else ("up" if running is not None and running.up else "not up")
        words[instance.step] = min(words.get(instance.step, word), word, key=_ORDER.index)
    if waits_for_older(snapshot, deployment) and words.get(view.plan.entry) == "active":
        words[view.plan.entry] = f"active, waits for deployment {older}"
    return words


def _word(report: sidecar_pb2.InstanceStatus) -> str:
    if report.state == sidecar_pb2.STEP_STATE_FAILED:
        return "failed"
    if report.progress == sidecar_pb2.PROGRESS_UNSPECIFIED:
        return "up"
    return sidecar_pb2.Progress.Name(report.progress).removeprefix("PROGRESS_").lower().replace("_", "-")


def draining_lines(snapshot: Snapshot) -> list[str]:
    """`deployment 1: 5 waiting, 2 in flight` for each that drains."""
    lines = []
    for number in snapshot.flow.live:
        if snapshot.phase_of(number) != DeploymentPhase.DRAINING:
            continue
        prefix = subjects.step_consumer(number, "")
        in_flight = sum(item.in_flight for name, item in snapshot.consumers.items() if name.startswith(prefix))
        waiting = max(0, snapshot.waiting_of(number) - in_flight)
        lines.append(f"deployment {number}: {waiting} waiting, {in_flight} in flight")
    return lines


def difference_message(difference: Difference) -> flow_pb2.FlowDifference:
    message = flow_pb2.FlowDifference(against=difference.against, fields=_fields(difference.fields))
    for step in difference.steps:
        item = message.steps.add(step=step.step, change=step.change, fields=_fields(step.fields))
        if step.old_pin is not None:
            item.old_component, item.old_digest = step.old_pin.component, step.old_pin.digest
            item.old_revision = step.old_pin.revision_number
        if step.new_pin is not None:
            item.new_component, item.new_digest = step.new_pin.component, step.new_pin.digest
            item.new_revision = step.new_pin.revision_number
    return message


def _fields(fields: tuple[FieldDifference, ...]) -> list[flow_pb2.FieldDifference]:
    return [
        flow_pb2.FieldDifference(field=item.field, old_json=item.old_json, new_json=item.new_json) for item in fields
    ]
