"""Every name of subjects, streams and consumers. Built and parsed here, nowhere else (buckets: `bucket_names`).

Data subjects: `hr.<workspace>.<flow>.<owner>.<step>.<slot>`; owner is `in` (ingress), `p<epoch>` (parked),
`d<deployment>` or `c<deployment>` (cursors). Names that start with `_` are ours, never a step's or a flow's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from headrace.model.names import is_number

ROOT = "hr"
INGRESS = "in"
SNAPSHOTS = "s"
BARRIER_STEP = "_barrier"
OWNER_STEP = "_owner"
SINGLE_SLOT = 0

_HEX = re.compile(r"[0-9a-f]{2}")
_SLOT_CONSUMER = re.compile(r"d(\d+)_([a-z0-9-]+)_s(\d+)_g(\d+)")


@dataclass(frozen=True, slots=True)
class DataSubject:
    """The parts of a data subject."""

    workspace: str
    flow: str
    owner: str
    step: str
    slot: int


@dataclass(frozen=True, slots=True)
class SlotConsumer:
    """The parts of the name of a slot's durable."""

    deployment: int
    step: str
    slot: int
    generation: int


def deployment_owner(deployment: int) -> str:
    return f"d{deployment}"


def cursor_owner(deployment: int) -> str:
    """Holds the cursors of a deployment's slots: never counted as waiting, removed when it retires."""
    return f"c{deployment}"


def parking_owner(epoch: int) -> str:
    return f"p{epoch}"


def data_subject(workspace: str, flow: str, owner: str, step: str, slot: int = SINGLE_SLOT) -> str:
    return f"{ROOT}.{workspace}.{flow}.{owner}.{step}.{slot}"


def flow_prefix(workspace: str, flow: str) -> str:
    """What every subject of a flow's stream begins with."""
    return f"{ROOT}.{workspace}.{flow}."


def cursor_subject(workspace: str, flow: str, deployment: int, step: str, slot: int) -> str:
    """Where the owner of a slot stores how far it has committed: at most one message."""
    return data_subject(workspace, flow, cursor_owner(deployment), step, slot)


def snapshot_subject(workspace: str, flow: str, step: str, number: int) -> str:
    """What a step keeps between messages, at most one message each: of no deployment, so that the next goes on with
    it. One token longer than a data subject, so that nothing that reads or counts those meets it."""
    return f"{ROOT}.{workspace}.{flow}.{SNAPSHOTS}.{step}.k.{number}"


def snapshot_filter(workspace: str, flow: str, step: str = "") -> str:
    """All snapshots of a flow, or of one step."""
    return f"{ROOT}.{workspace}.{flow}.{SNAPSHOTS}.{step + '.k.*' if step else '>'}"


def parse_snapshot_subject(subject: str) -> tuple[str, int]:
    """Step and number; ValueError if it is none."""
    parts = subject.split(".")
    if len(parts) != 7 or parts[3] != SNAPSHOTS or not is_number(parts[6]):
        raise ValueError(f"not a snapshot's subject: {subject}")
    return parts[4], int(parts[6])


def ingress_subject(workspace: str, flow: str, trigger: str, slot: int = SINGLE_SLOT) -> str:
    """Where stimuli are published; the broker's transform gives them their owner."""
    return data_subject(workspace, flow, INGRESS, trigger, slot)


def barrier_subject(workspace: str, flow: str) -> str:
    return data_subject(workspace, flow, INGRESS, BARRIER_STEP)


def ingress_owner_subject(workspace: str, flow: str, fence: int) -> str:
    """On a cluster: where the stream itself says who owns the ingress (headrace.model.ingress_owner)."""
    return data_subject(workspace, flow, INGRESS, OWNER_STEP, fence)


def ingress_owner_filter(workspace: str, flow: str) -> str:
    return all_slots(workspace, flow, INGRESS, OWNER_STEP)


def parse_data_subject(subject: str) -> DataSubject:
    """Takes a data subject apart; ValueError if it is none."""
    parts = subject.split(".")
    if len(parts) != 6 or parts[0] != ROOT or not is_number(parts[5]):
        raise ValueError(f"not a data subject: {subject}")
    return DataSubject(parts[1], parts[2], parts[3], parts[4], int(parts[5]))


def ingress_filter(workspace: str, flow: str) -> str:
    """Stream subject and transform source of the ingress."""
    return f"{ROOT}.{workspace}.{flow}.{INGRESS}.*.*"


def all_data(workspace: str, flow: str) -> str:
    """Everything of all owners, and nothing else (no snapshots)."""
    return f"{ROOT}.{workspace}.{flow}.*.*.*"


def owner_filter(workspace: str, flow: str, owner: str) -> str:
    """Everything of one owner: `hr.default.orders.d7.>`."""
    return f"{ROOT}.{workspace}.{flow}.{owner}.>"


def all_slots(workspace: str, flow: str, owner: str, step: str) -> str:
    """Everything of one step of an owner: `hr.default.orders.p1.order.*`."""
    return f"{ROOT}.{workspace}.{flow}.{owner}.{step}.*"


def owner_filter_of(subject: str) -> str:
    """The owner's filter that covers a data subject, or a consumer's filter."""
    return ".".join([*subject.split(".")[:4], ">"])


def transform_destination(workspace: str, flow: str, owner: str) -> str:
    """Destination of the ingress transform: keeps step and slot, sets the owner."""
    return f"{ROOT}.{workspace}.{flow}.{owner}.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}"


def flow_stream(workspace: str, flow: str) -> str:
    """Names hold no underscore, so this is unambiguous."""
    return f"hr_{workspace}_{flow}"


def flow_of_stream(workspace: str, stream: str) -> str:
    """The flow whose stream it is; empty for any other stream."""
    prefix = f"hr_{workspace}_"
    rest = stream.removeprefix(prefix)
    return rest if stream.startswith(prefix) and "_" not in rest else ""


def stream_updated_subject() -> str:
    """The broker tells here of every change of a stream's config; the last token is the stream."""
    return "$JS.EVENT.ADVISORY.STREAM.UPDATED.*"


def step_consumer(deployment: int, step: str) -> str:
    """Durable of an unkeyed step: `d7_price`."""
    return f"d{deployment}_{step}"


def slot_consumer(deployment: int, step: str, slot: int, generation: int) -> str:
    """Durable of one slot of a keyed step: `d7_price_s3_g12`. A name is never used again."""
    return f"{slot_prefix(deployment, step, slot)}{generation}"


def slot_prefix(deployment: int, step: str, slot: int) -> str:
    """How the names of all durables of one slot begin, whatever their generation."""
    return f"d{deployment}_{step}_s{slot}_g"


def parse_slot_consumer(name: str) -> SlotConsumer | None:
    """Takes the name of a slot's durable apart; None if it is none."""
    found = _SLOT_CONSUMER.fullmatch(name)
    return SlotConsumer(int(found[1]), found[2], int(found[3]), int(found[4])) if found else None


def dead_letter_stream(workspace: str, flow: str) -> str:
    """One per flow, so that a flood of one flow pushes out no letter of another."""
    return f"hr_{workspace}__dead_{flow}"


def dead_letter_subject(workspace: str, flow: str, step: str) -> str:
    return f"{ROOT}.{workspace}._letters.{flow}.{step}"


def is_dead_letter(subject: str) -> bool:
    return subject.split(".", 3)[2:3] == ["_letters"]


def dead_letter_filter(workspace: str, flow: str, step: str = "") -> str:
    """Letters of a flow, or of one step."""
    return f"{ROOT}.{workspace}._letters.{flow}.{step or '*'}"


def stimulus_stream(workspace: str, flow: str) -> str:
    """What started a flow's executions; only of flows that keep it."""
    return f"hr_{workspace}__stimuli_{flow}"


def stimulus_subject(workspace: str, flow: str, step: str, execution: str) -> str:
    """A stimulus that this step was the first to handle. The last token is a number below 256 that follows from the
    execution's id, so that one execution is found among many without reading them all."""
    return f"{ROOT}.{workspace}._stimuli.{flow}.{step}.{_shelf(execution)}"


def stimulus_filter(workspace: str, flow: str, execution: str = "") -> str:
    return f"{ROOT}.{workspace}._stimuli.{flow}.*.{_shelf(execution) if execution else '*'}"


def _shelf(execution: str) -> int:
    return int(execution[:2], 16) if _HEX.match(execution) else 0


def doubt_stream(workspace: str) -> str:
    """Records of messages in doubt, of all flows: bounded per step."""
    return f"hr_{workspace}__doubt"


def doubt_subject(workspace: str, flow: str, step: str) -> str:
    return f"{ROOT}.{workspace}._doubt.{flow}.{step}"


def doubt_filter(workspace: str, flow: str = "") -> str:
    return f"{ROOT}.{workspace}._doubt.{flow}.*" if flow else f"{ROOT}.{workspace}._doubt.>"


def log_stream(workspace: str) -> str:
    return f"hr_{workspace}__logs"


def log_subject(workspace: str, flow: str, step: str) -> str:
    return f"{ROOT}.{workspace}._logs.{flow}.{step}"


def log_filter(workspace: str, flow: str = "", step: str = "") -> str:
    if not flow:
        return f"{ROOT}.{workspace}._logs.>"
    return f"{ROOT}.{workspace}._logs.{flow}.{step or '*'}"


def history_stream(workspace: str) -> str:
    return f"hr_{workspace}__history"


def history_subject(workspace: str, flow: str, place: str) -> str:
    """One entry; without a flow: of the leader's changes."""
    return f"{ROOT}.{workspace}._history.{flow or '_leader'}.{place}"


def history_filter(workspace: str, flow: str = "") -> str:
    return f"{ROOT}.{workspace}._history.{flow}.*" if flow else f"{ROOT}.{workspace}._history.>"


def reply_subject(workspace: str, gateway: str) -> str:
    """Core NATS address of a gateway instance; sidecars copy it from input to outputs."""
    return f"{ROOT}.{workspace}._reply.{gateway}"


def is_reply(subject: str) -> bool:
    return subject.split(".", 3)[2:3] == ["_reply"]


def hop_request_subject(workspace: str, flow: str) -> str:
    """Sidecars and gateways answer a request here with their HopSnapshot (one each)."""
    return f"{ROOT}.{workspace}._hops.{flow}"


def metrics_request_subject(workspace: str) -> str:
    """Sidecars and gateways answer a request here with their ProcessMetrics (one or more each)."""
    return f"{ROOT}.{workspace}._metrics"


def trace_question_subject(workspace: str, flow: str) -> str:
    """Sidecars, gateways and orchestrators answer a TraceQuestion here; flow `_all`: those of every flow."""
    return f"{ROOT}.{workspace}._traces.{flow}"


def keep_subject(workspace: str, flow: str) -> str:
    """Executions of which whoever remembers something is to keep it, ids by line."""
    return f"{ROOT}.{workspace}._keep.{flow}"


def traffic_request_subject(workspace: str, flow: str) -> str:
    """Gateways answer a request here with their FlowTraffic of the flow (one each)."""
    return f"{ROOT}.{workspace}._traffic.{flow}"


def gateway_presence_subject(workspace: str) -> str:
    """Gateways answer a request here with their HTTP address (UTF-8 text)."""
    return f"{ROOT}.{workspace}._gateways"
