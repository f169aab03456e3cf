"""Flows, versions, deployments and their status as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.api.flow.v1 import flow_pb2
from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.cli.letter_tables import counts_line
from headrace.cli.moments import moment_text
from headrace.cli.plain import enum_word
from headrace.cli.tables import short_digest, table
from headrace.model.durations import format_duration


def status_text(status: flow_pb2.FlowStatus) -> str:
    """Head line, webhook, table of steps, deployments where there is more than one, problems."""
    active = active_deployment(status)
    head = [status.flow.removeprefix("flows/"), state_word(status)]
    if active is not None:
        head += [f"version {active.version}", f"deployment {active.number}"]
    if status.profile:
        head.append(f"profile {status.profile}")
    lines = ["  ".join(head)]
    if status.webhook_url:
        lines.append(f"webhook {status.webhook_url}")
    if status.HasField("timer"):
        lines.append(_timer_line(status.timer))
    if status.HasField("suspension"):
        lines.append(suspension_line(status.suspension))
    if status.steps:
        lines += ["", steps_table(status.steps, status.mesh_trigger), *slot_lines(status.steps)]
    if len(status.deployments) > 1:
        lines += ["", _deployment_lines(status.deployments)]
    lines += unrouted_lines(status.steps)
    if status.dropped:
        lines += ["", f"{status.dropped} messages dropped by stops"]
    if status.in_doubt:
        lines += ["", f"{status.in_doubt} messages in doubt. See: headrace dead-letters in-doubt {head[0]}"]
    if status.dead_letters.total:
        lines += ["", f"{counts_line(status.dead_letters)}. See: headrace dead-letters list {head[0]}"]
    lines += [f"problem: {problem}" for problem in status.problems]
    lines += _instance_troubles(status.steps)
    return "\n".join(lines)


def active_deployment(status: flow_pb2.FlowStatus) -> flow_pb2.Deployment | None:
    """The deployment that works."""
    for item in status.deployments:
        if item.deployment.phase == flow_pb2.DEPLOYMENT_PHASE_ACTIVE:
            return item.deployment
    return None


def _timer_line(timer: flow_pb2.TimerStatus) -> str:
    words = [f"timer {timer.step} at {timer.cron} {timer.time_zone}"]
    if not timer.cron:
        words = [f"timer {timer.step} every {format_duration(timer.every.ToTimedelta().total_seconds())}"]
    if timer.HasField("next_instant"):
        words.append(f"next {_moment(timer.next_instant)}")
    words.append(f"{timer.ticks} ticks")
    if timer.skipped:
        words.append(f"{timer.skipped} skipped (too late after an outage)")
    if timer.edge_full:
        words.append(f"{timer.edge_full} dropped (the step had too many waiting)")
    return "  ".join(words)


def suspension_line(suspension: flow_pb2.Suspension) -> str:
    """What a suspended flow keeps, and until when it takes more."""
    taking = f"takes messages until {_moment(suspension.until)}"
    if suspension.limit_reached:
        taking = f"takes no more messages (limit: {suspension.limit_reached.lower()})"
    since = _moment(suspension.since)
    if suspension.step:
        since += f" because of step {suspension.step} (message {suspension.message_id})"
    return f"suspended since {since}: keeps {suspension.kept} of at most {suspension.max_messages} messages, {taking}"


def steps_table(steps: Sequence[flow_pb2.StepStatus], own: flow_pb2.MeshTrigger | None = None) -> str:
    """One line per step; `own` is the trigger that runs no process, where there is one."""
    rows: list[tuple[object, ...]] = (
        [(own.step, "no process", f"-> {own.to}", "-", "-", "-", "-")] if own and own.step else []
    )
    rows += [
        (
            step.step,
            step_word(step.state),
            revision_words(step),
            short_digest(step.pin.digest) or "-",
            f"{running_instances(step)}/{max(step.replicas, 1)}",
            step.waiting,
            step.in_flight,
        )
        for step in steps
    ]
    return table(("STEP", "STATE", "REVISION", "DIGEST", "INSTANCES", "WAITING", "IN FLIGHT"), rows)


def unrouted_lines(steps: Sequence[flow_pb2.StepStatus]) -> list[str]:
    """Outputs that went nowhere, since none of the conditions of the step's edges held for them."""
    counts = {step.step: sum(item.counters.get("unrouted", 0) for item in step.instances) for step in steps}
    return [f"{count} outputs of {step} matched no condition" for step, count in counts.items() if count]


def slot_lines(steps: Sequence[flow_pb2.StepStatus]) -> list[str]:
    """Who owns the slots of keyed steps, and which of them wait: `slots of price by instance  0: 0-3  1: 4-7`."""
    lines = []
    for step in steps:
        owned: dict[str, list[int]] = {}
        held: dict[str, list[int]] = {}
        for slot in step.slots:
            owned.setdefault(slot.owner.rpartition(".")[2], []).append(slot.slot)
            if slot.waits_for:
                held.setdefault(slot.waits_for, []).append(slot.slot)
        if owned:
            words = [f"{replica}: {_ranges(slots)}" for replica, slots in sorted(owned.items())]
            lines.append(f"slots of {step.step} by instance  " + "  ".join(words))
        for reason, slots in sorted(held.items()):
            lines.append(f"slots of {step.step} that wait for {reason}: {_ranges(slots)}")
    return lines


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3,7` of sorted numbers."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}-{last}" if first != last else f"{first}" for first, last in parts)


def running_instances(step: flow_pb2.StepStatus) -> int:
    return sum(instance.state == sidecar_pb2.STEP_STATE_RUNNING for instance in step.instances)


def revision_words(step: flow_pb2.StepStatus) -> str:
    """`price@1`, and whether a newer revision waits for a new deployment."""
    if not step.HasField("pin"):
        return "-"
    newer = f" ({step.newer_revision} is newer)" if step.newer_revision else ""
    return f"{step.pin.component}@{step.pin.revision_number}{newer}"


def step_word(state: int) -> str:
    return enum_word(sidecar_pb2.StepState.DESCRIPTOR, state)


def state_word(flow: flow_pb2.FlowStatus | flow_pb2.Flow) -> str:
    return enum_word(flow_pb2.FlowState.DESCRIPTOR, flow.state)


def flows_text(flows: Sequence[flow_pb2.Flow]) -> str:
    """One line per flow."""
    rows = [
        (
            flow.name.removeprefix("flows/"),
            enum_word(flow_pb2.FlowType.DESCRIPTOR, flow.type).lower(),
            state_word(flow),
            flow.running_version or "-",
            flow.active_deployment or "-",
            flow.latest_version or "-",
            "yes" if flow.HasField("draft") else "-",
        )
        for flow in flows
    ]
    return table(("FLOW", "TYPE", "STATE", "RUNS VERSION", "DEPLOYMENT", "NEWEST VERSION", "DRAFT"), rows)


def flow_text(
    flow: flow_pb2.Flow, versions: Sequence[flow_pb2.Version], deployments: Sequence[flow_pb2.Deployment]
) -> str:
    """Head line, graph of the draft or the newest version, versions, deployments."""
    lines = [f"{flow.name.removeprefix('flows/')}  {state_word(flow)}"]
    newest = max(versions, key=lambda version: version.number, default=None)
    if flow.HasField("draft"):
        lines += ["", "draft", _graph(flow.draft)]
    elif newest is not None:
        lines += ["", f"version {newest.number}", _graph(newest.spec)]
    if versions:
        rows = [(version.number, _moment(version.create_time)) for version in versions]
        lines += ["", table(("VERSION", "PUBLISHED"), rows)]
    if deployments:
        table_rows = [
            (
                item.number,
                item.version,
                enum_word(flow_pb2.DeploymentPhase.DESCRIPTOR, item.phase),
                _moment(item.create_time),
                item.cause.partition("\n")[0]
                or ", ".join(f"{pin.step}={pin.component}@{pin.revision_number}" for pin in item.pins),
            )
            for item in deployments
        ]
        lines += ["", table(("DEPLOYMENT", "VERSION", "PHASE", "CREATED", "PINS"), table_rows)]
    return "\n".join(lines)


def difference_lines(difference: flow_pb2.FlowDifference) -> list[str]:
    """What differs from the deployment that ran before, a line each; one line where nothing does."""
    lines = [f"{item.field}: {_values(item)}" for item in difference.fields]
    for step in difference.steps:
        old, new = f"{step.old_component}@{step.old_revision}", f"{step.new_component}@{step.new_revision}"
        if step.change == "added":
            lines.append(f"+ {step.step}: {new} ({short_digest(step.new_digest)})")
        elif step.change == "removed":
            lines.append(f"- {step.step}: {old}")
        else:
            if step.old_digest != step.new_digest:
                digests = f"{short_digest(step.old_digest)} -> {short_digest(step.new_digest)}"
                lines.append(f"~ {step.step}: {old} -> {new} ({digests})")
            lines += [f"~ {step.step}: {item.field} {_values(item)}" for item in step.fields]
    return lines or [f"the same as deployment {difference.against}"]


def _values(field: flow_pb2.FieldDifference) -> str:
    return f"{field.old_json or '(none)'} -> {field.new_json or '(none)'}"


def _graph(spec: flow_pb2.FlowSpec) -> str:
    rows = [
        (step.name, (step.component or "(mesh)") + _every(step), step.function or "-", _to(step)) for step in spec.steps
    ]
    return table(("STEP", "COMPONENT", "FUNCTION", "TO"), rows)


def _to(step: flow_pb2.Step) -> str:
    words = [*step.to, *([f"on error {step.error_step.step}"] if step.HasField("error_step") else [])]
    return ", ".join(words) or "-"


def _every(step: flow_pb2.Step) -> str:
    if step.cron:
        return f" at {step.cron}"
    if not step.HasField("every"):
        return ""
    return f" every {format_duration(step.every.ToTimedelta().total_seconds())}"


def _deployment_lines(deployments: Sequence[flow_pb2.DeploymentStatus]) -> str:
    rows = [
        (
            item.deployment.number,
            item.deployment.version,
            enum_word(flow_pb2.DeploymentPhase.DESCRIPTOR, item.deployment.phase),
            item.waiting,
            item.in_flight,
        )
        for item in deployments
    ]
    return table(("DEPLOYMENT", "VERSION", "PHASE", "WAITING", "IN FLIGHT"), rows)


def _instance_troubles(steps: Sequence[flow_pb2.StepStatus]) -> list[str]:
    """Cause and last log lines of instances that failed."""
    lines = []
    for step in steps:
        for instance in step.instances:
            if instance.state == sidecar_pb2.STEP_STATE_FAILED:
                lines.append(f"{instance.instance}: {instance.cause}")
                lines += [f"  | {line}" for line in instance.last_log_lines[-5:]]
    return lines


def _moment(time: Any) -> str:
    return moment_text(time) + "Z"
