"""The stream and the consumers that a flow's documents ask for; compared with what the broker has."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase, DeploymentPlan
from headrace.model.flow_stream import NANOS, flow_stream_config, ingress_transform
from headrace.model.ingress_owner import NOBODY, IngressOwner
from headrace.model.names import is_number
from headrace.model.slots import MAX_SLOTS
from services.orchestrator.domain.deployment_phases import OVER, WANTED
from services.orchestrator.domain.documents import DROP, FlowDocument, current_epoch
from services.orchestrator.domain.drain_choice import settling
from services.orchestrator.domain.flow_states import SUSPENDED_STATES, FlowState
from services.orchestrator.domain.slot_handover import durables, waits_for_slot
from services.orchestrator.domain.snapshot import ConsumerView, Snapshot, StreamView

MIN_ACK_PENDING = 1000
GENERATION_KEY = "headrace-generation"
CURSORS = "c"
NO_SLOT = -1


def owners(snapshot: Snapshot) -> list[str]:
    """Owners that the stream lists: those of live deployments, and the epoch of the next start."""
    flow = snapshot.flow
    listed: list[str] = [subjects.parking_owner(current_epoch(flow))]
    for number in flow.live:
        view = snapshot.deployments.get(number)
        if number in flow.closed or snapshot.phase_of(number) in ("RETIRED", "FAILED"):
            continue
        listed += [subjects.deployment_owner(number), subjects.cursor_owner(number)]
        if view is not None and view.plan is not None and view.plan.parking_epoch:
            listed.append(subjects.parking_owner(view.plan.parking_epoch))
    if flow.ingress:
        listed.append(flow.ingress)
    return sorted(set(listed), key=lambda owner: (owner[0], int(owner[1:])))


def wanted_stream(snapshot: Snapshot) -> dict[str, object] | None:
    """The whole config of the flow's stream; None when the flow has never been started."""
    flow = snapshot.flow
    if not flow.has_stream:
        return None
    workspace, name = snapshot.workspace, flow.flow
    listed = [subjects.owner_filter(workspace, name, owner) for owner in owners(snapshot)]
    config = flow_stream_config(
        subjects.flow_stream(workspace, name),
        (*_ingress_subjects(snapshot), *listed, subjects.snapshot_filter(workspace, name)),
        max_waiting=flow.max_waiting,
        copies=snapshot.stream_copies,
    )
    config["metadata"] = {"headrace-flow": name, GENERATION_KEY: str(flow.assets_generation)}
    if flow.ingress and not snapshot.fenced:
        config["subject_transform"] = ingress_transform(workspace, name, flow.ingress)
    return config


def _ingress_subjects(snapshot: Snapshot) -> list[str]:
    """Where stimuli come in, or (clusters) where it is said who owns them; the latter also while nobody does."""
    workspace, flow = snapshot.workspace, snapshot.flow
    if snapshot.fenced:
        return [subjects.ingress_owner_filter(workspace, flow.flow)]
    return [subjects.ingress_filter(workspace, flow.flow)] if flow.ingress else []


def stream_view(info: Mapping[str, object], owner: IngressOwner = NOBODY) -> StreamView:
    """What the planner needs of a STREAM.INFO answer (asked with a subjects filter)."""
    config = dict(_mapping(info["config"]))
    shown: dict[str, object] = {}
    for key in (
        "name",
        "retention",
        "storage",
        "discard",
        "discard_new_per_subject",
        "allow_atomic",
        "allow_rollup_hdrs",
        "max_msgs_per_subject",
        "duplicate_window",
        "num_replicas",
        "subject_transform",
    ):
        if config.get(key) is not None:
            shown[key] = config[key]
    shown["subjects"] = tuple(_sequence(config.get("subjects")))
    shown["metadata"] = _own_metadata(config)
    counts: dict[tuple[str, str, int], int] = {}
    cursors: set[str] = set()
    says_owner = False
    for subject, count in _mapping(_mapping(info.get("state")).get("subjects")).items():
        parts = subject.split(".")
        if len(parts) == 6 and parts[3].startswith(CURSORS):
            cursors.add(parts[3])
        elif len(parts) == 6 and parts[4] == subjects.OWNER_STEP:
            says_owner = True
        elif len(parts) == 6:
            place = (parts[3], parts[4], int(parts[5]) if is_number(parts[5]) else NO_SLOT)
            counts[place] = counts.get(place, 0) + int(str(count))
    last = int(str(_mapping(info.get("state")).get("last_seq", 0)))
    return StreamView(shown, counts, last, frozenset(cursors), says_owner, owner)


def consumer_config(
    plan: DeploymentPlan, step: str, replicas: int, durable: str, slot: int = subjects.SINGLE_SLOT
) -> dict[str, object]:
    """The whole config of a durable of a step. The trigger's delivers what was parked first."""
    workspace, flow = plan.workspace, plan.flow
    filters = [subjects.data_subject(workspace, flow, subjects.deployment_owner(plan.deployment), step, slot)]
    if step == plan.entry and plan.parking_epoch:
        filters = [*_parked(plan, slot), *filters]
    prefetch = plan.step(step).prefetch
    config: dict[str, object] = {
        "durable_name": durable,
        "ack_policy": "explicit",
        "ack_wait": int(plan.ack_wait_s * NANOS),
        "max_deliver": -1,
        "max_ack_pending": max(prefetch * replicas * 2, MIN_ACK_PENDING),
        "deliver_policy": "all",
        "replay_policy": "instant",
        "metadata": {"headrace-flow": flow, "headrace-deployment": str(plan.deployment)},
    }
    if len(filters) == 1:
        config["filter_subject"] = filters[0]
    else:
        config["filter_subjects"] = tuple(filters)
    return config


def _parked(plan: DeploymentPlan, slot: int) -> list[str]:
    """What was parked for the trigger, or for one slot of it. It may have been placed after another version's key
    and slots (while the flow did not run), so every slot that can be is read by somebody."""
    slots = plan.step(plan.entry).slots
    parked = subjects.parking_owner(plan.parking_epoch)
    if slots == 1:
        return [subjects.all_slots(plan.workspace, plan.flow, parked, plan.entry)]
    return [
        subjects.data_subject(plan.workspace, plan.flow, parked, plan.entry, number)
        for number in range(slot, MAX_SLOTS, slots)
    ]


def consumer_view_config(config: Mapping[str, object]) -> dict[str, object]:
    """The part of a consumer's config that `consumer_config` decides."""
    keys = ("durable_name", "ack_policy", "ack_wait", "max_deliver", "max_ack_pending", "deliver_policy")
    shown: dict[str, object] = {key: config[key] for key in (*keys, "replay_policy") if config.get(key) is not None}
    if config.get("filter_subject"):
        shown["filter_subject"] = config["filter_subject"]
    if config.get("filter_subjects"):
        shown["filter_subjects"] = tuple(_sequence(config["filter_subjects"]))
    shown["metadata"] = _own_metadata(config)
    return shown


def consumer_view(info: Mapping[str, object]) -> ConsumerView:
    """What the planner needs of a CONSUMER.INFO answer, or of one of CONSUMER.LIST."""
    delivered, floor = (int(str(_mapping(info.get(key)).get("stream_seq", 0))) for key in ("delivered", "ack_floor"))
    return ConsumerView(
        consumer_view_config(_mapping(info["config"])),
        paused=bool(info.get("paused")),
        in_flight=int(str(info.get("num_ack_pending", 0))),
        pending=int(str(info.get("num_pending", 0))),
        moved=(delivered, floor),
    )


def wanted_consumers(snapshot: Snapshot) -> dict[str, tuple[dict[str, object], bool]]:
    """Durable name to (config, paused) of all live deployments."""
    wanted: dict[str, tuple[dict[str, object], bool]] = {}
    for number in snapshot.flow.live:
        view = snapshot.deployments.get(number)
        if view is None or view.plan is None or view.state is None or view.state.phase not in WANTED:
            continue
        if number in snapshot.flow.closed and dropping(snapshot.flow):
            continue
        for step in view.plan.steps:
            replicas = 1 if step.keyed else view.state.replicas.get(step.name, 1)
            closed = step.name == view.plan.entry and not _open(snapshot, number, view.state.phase)
            held = snapshot.flow.state in SUSPENDED_STATES or dropping(snapshot.flow) or settling(view.state)
            held = held or _opens_again(snapshot, number)
            for durable, slot in durables(view.plan, view.state, step.name).items():
                config = consumer_config(view.plan, step.name, replicas, durable, slot)
                waits = step.keyed and waits_for_slot(snapshot, number, step.name, slot)
                wanted[durable] = (config, bool(closed or held or waits))
    return wanted


def _opens_again(snapshot: Snapshot, number: int) -> bool:
    """Whether messages wait that were to be stored elsewhere and are not, after all: whoever worked on them now could
    not pass anything on before the stream takes it again."""
    own = subjects.owner_filter(snapshot.workspace, snapshot.flow.flow, subjects.deployment_owner(number))
    return snapshot.stream is not None and not snapshot.stream.takes(own) and snapshot.waiting_of(number) > 0


def dropping(flow: FlowDocument) -> bool:
    return flow.state == FlowState.STOPPING and flow.stop_mode == DROP


def _open(snapshot: Snapshot, deployment: int, phase: DeploymentPhase) -> bool:
    """Whether a deployment's trigger may be delivered to: with a parking epoch since the ingress was proved to be
    its own, else as soon as it is active, so that the first message after the switch waits for nothing; with strict
    order since all older ones have drained."""
    flow = snapshot.flow
    if waits_for_older(snapshot, deployment):
        return False
    if phase == DeploymentPhase.DRAINING or deployment == flow.active:
        return True
    plan = snapshot.deployments[deployment].plan
    if deployment != flow.target or (plan is not None and not plan.parking_epoch):
        return phase == DeploymentPhase.ACTIVE  # it had the ingress and is about to drain, or is about to get it
    return flow.ingress == subjects.deployment_owner(deployment) and flow.ingress_confirmed


def waits_for_older(snapshot: Snapshot, deployment: int) -> bool:
    """With strict order: whether an older deployment has not drained yet."""
    if deployment not in snapshot.flow.strict:
        return False
    return any(snapshot.phase_of(other) not in OVER for other in snapshot.flow.live if other < deployment)


def _own_metadata(config: Mapping[str, object]) -> dict[str, object]:
    metadata = _mapping(config.get("metadata"))
    return {key: value for key, value in metadata.items() if not key.startswith("_nats")}


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else []
