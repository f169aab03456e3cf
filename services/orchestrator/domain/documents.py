"""The orchestrator's own documents in KV: flows, versions, operations. Stored as msgspec JSON.

A flow document holds what was decided; everything else (stream, consumers, instances) follows from it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

import msgspec

from headrace.model.flow_spec import FlowSpec
from headrace.model.subjects import deployment_owner, parking_owner
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.history_entry import HistoryEntry
from services.orchestrator.domain.letter_ledger import LetterLedger

DRAIN = "DRAIN"
DROP = "DROP"
# How long a replaced deployment may drain before a person is asked; a stop brings its own limit.
DRAIN_LIMIT_S = 60.0
# Of how many calls a document keeps the marks: a repeat comes within moments.
KEPT_MARKS = 20


class Strategy(StrEnum):
    """How a new deployment takes over from the one that runs."""

    WARM_SWITCH = "WARM_SWITCH"
    RESTART = "RESTART"


class Rollout(msgspec.Struct, frozen=True):
    """How the target takes over. `limit_s` is how long it may take to get ready, 0 for no limit."""

    strategy: Strategy = Strategy.WARM_SWITCH
    # Its trigger waits until every older deployment has drained.
    strict_order: bool = False
    limit_s: float = 0.0
    # Deployment whose digests are used again; 0: references are resolved afresh.
    pins_of: int = 0
    # Deployment whose numbers of replicas are kept; 0: those of the version.
    replicas_of: int = 0


DEFAULT_ROLLOUT = Rollout()


class OperationIntent(msgspec.Struct, frozen=True):
    """The operation a flow is busy with. `deadline` and `created_at` are Unix seconds; deadline 0 is none."""

    id: str
    verb: str
    version: int = 0
    deployment: int = 0
    created_at: float = 0.0
    deadline: float = 0.0
    # Deployment that ran when it began: what its difference is shown against.
    against: int = 0
    # A person gave it up while it could still be undone.
    cancelled: bool = False
    # Of a `drain-choice`: what was chosen, and the number in the ids of moved messages.
    choice: str = ""
    incarnation: int = 0
    # Of a `scale`.
    step: str = ""
    replicas: int = 0


class SuspensionRecord(msgspec.Struct, frozen=True):
    """Limits of a suspended flow. Unix seconds; `reached` names the limit that closed the ingress: TIME or COUNT."""

    since: float
    until: float
    max_messages: int
    reached: str = ""
    # Set where a message suspended it: step, error and ids of the message.
    step: str = ""
    error_code: str = ""
    error_message: str = ""
    message_id: str = ""
    execution_id: str = ""


class GivenUp(msgspec.Struct, frozen=True):
    """What was parked under epochs up to this one, for this deployment, goes to the dead letters: by this operation,
    so many so far."""

    epoch: int = 0
    deployment: int = 0
    operation: str = ""
    dead_lettered: int = 0


class Act(msgspec.Struct, frozen=True):
    """Something for the history; `number` tells one from the next."""

    what: str = ""
    detail: str = ""
    number: int = 0


class FlowDocument(msgspec.Struct, frozen=True):
    """What was decided about a flow. Every change is a compare-and-set on the whole."""

    flow: str
    flow_type: str
    created_at: float
    draft: FlowSpec | None = None
    latest_version: int = 0
    # Raised by what a person changes; the etag.
    edit: int = 1
    state: FlowState = FlowState.STOPPED
    stop_mode: str = ""
    # Deployment that runs, and the one that is being made ready; 0 for none.
    active: int = 0
    active_version: int = 0
    target: int = 0
    # Whether the deployment of the last start begins with a listener, as its references said when it was asked for.
    listens: bool = False
    target_version: int = 0
    # How the target takes over, and until when (Unix seconds, 0: no limit) it must be ready.
    rollout: Rollout = DEFAULT_ROLLOUT
    target_deadline: float = 0.0
    # Deployments whose trigger waits for older ones to drain.
    strict: tuple[int, ...] = ()
    # Deployments of which something (instances, consumers, pins) may be left, oldest first.
    live: tuple[int, ...] = ()
    # Of those, the ones whose owner was taken out of the stream.
    closed: tuple[int, ...] = ()
    next_deployment: int = 1
    # Epoch under which a start parks messages; used once its deployment became active.
    parking_epoch: int = 1
    parking_used: bool = False
    given_up: GivenUp = GivenUp()
    # Owner of the ingress (`d1`, `p1`, empty: refused), and whether a barrier has proved it.
    ingress: str = ""
    ingress_confirmed: bool = True
    # On a cluster: sequence of the message that says so, in the stream.
    ingress_sequence: int = 0
    # Epoch of the leader that took the flow over last.
    leader_epoch: int = 0
    # How often the ingress was found switched by somebody who was not to, and how many messages were moved from
    # under an owner that nobody works for.
    ingress_repairs: int = 0
    strays_moved: int = 0
    # How many stored messages were delivered again that their durable would not have delivered.
    stuck_redelivered: int = 0
    # Deployments that dead letters are being sent to: they do not retire meanwhile.
    replaying: tuple[int, ...] = ()
    # What a person did last that changes nothing else here, for the history.
    act: Act = Act()
    # Entries of the history that are not stored yet, and the number of the next one.
    history: tuple[HistoryEntry, ...] = ()
    history_next: int = 1
    # Raised with each decision that changes the stream.
    assets_generation: int = 0
    # Whether anything was ever started, so that there is a stream.
    has_stream: bool = False
    # Edge limit of the stream: the newest deployment's.
    max_waiting: int = 10_000
    # Version number to the deployment it last ran with.
    last_deployments: dict[str, int] = {}
    # Version number to the deployment that ran it before the last one: where a rollback from the last one leads.
    earlier_deployments: dict[str, int] = {}
    deleted_versions: tuple[int, ...] = ()
    # When it began to run (Unix seconds), after a stop or a suspension: no ticks are made up for what was before.
    running_since: float = 0.0
    # Since when nobody listens (Unix seconds), while one listener is drained for its successor; else 0.
    listening_ended_at: float = 0.0
    operation: OperationIntent | None = None
    # Set while the flow is suspended (or about to be).
    suspension: SuspensionRecord | None = None
    # How often it was resumed (or stopped) after a message had suspended it.
    resumed: int = 0
    # Seconds after which a drain asks for a person's choice.
    drain_limit_s: float = DRAIN_LIMIT_S
    # Operations that another one has overtaken and that wait for being ended.
    overtaken: tuple[OperationIntent, ...] = ()
    # Messages that people dropped, and the sequence of the flow's stream up to which they are counted.
    dropped: int = 0
    dropped_through: int = 0
    # What people did with the flow's dead letters.
    letters: LetterLedger = LetterLedger()
    # Marks of the newest calls with a request id that changed it: a repeat sees here that it was done.
    requests: tuple[str, ...] = ()
    # How often a person had credentials refreshed, and what came of it the last time.
    refreshes: int = 0
    refreshed: str = ""


class DeletedFlow(msgspec.Struct, frozen=True):
    """What outlives a deleted flow: a flow of the same name goes on counting, so that no deployment number and
    no parking epoch ever means two things (agents and sidecars remember them)."""

    next_deployment: int
    parking_epoch: int
    assets_generation: int
    history_next: int = 1
    history: tuple[HistoryEntry, ...] = ()
    requests: tuple[str, ...] = ()


class VersionDocument(msgspec.Struct, frozen=True):
    """Immutable: what was published."""

    flow: str
    number: int
    spec: FlowSpec
    created_at: float


class OperationFailure(msgspec.Struct, frozen=True):
    """How an operation failed; `code` is the name of a gRPC status."""

    code: str
    reason: str
    message: str
    next_step: str = ""
    metadata: dict[str, str] = {}


class OperationDocument(msgspec.Struct, frozen=True):
    """A long-running operation as seen from outside."""

    id: str
    flow: str
    verb: str
    version: int
    deployment: int
    created_at: float
    done: bool = False
    done_at: float = 0.0
    failure: OperationFailure | None = None
    dropped: int = 0
    message: str = ""
    dead_lettered: int = 0
    moved: int = 0
    against: int = 0


T = TypeVar("T")


def encode(document: msgspec.Struct) -> bytes:
    return msgspec.json.encode(document)


def decode(raw: bytes, kind: type[T]) -> T:
    """Unknown fields are ignored, so that an older orchestrator can read what a newer one wrote."""
    return msgspec.json.decode(raw, type=kind)


def flow_key(flow: str) -> str:
    return f"flow.{flow}"


def deleted_flow_key(flow: str) -> str:
    return f"deleted.{flow}"


def version_key(flow: str, number: int) -> str:
    return f"version.{flow}.{number}"


def operation_key(operation: str) -> str:
    return f"operation.{operation}"


def operation_of(flow: str, intent: OperationIntent) -> OperationDocument:
    """The document of an operation that has just begun."""
    return OperationDocument(
        intent.id, flow, intent.verb, intent.version, intent.deployment, intent.created_at, against=intent.against
    )


def change(document: FlowDocument, **changes: object) -> FlowDocument:
    """A copy with changes; a change of what the stream follows from raises `assets_generation`."""
    changed = msgspec.structs.replace(document, **changes)
    stream_fields = ("ingress", "live", "closed", "parking_epoch", "max_waiting", "has_stream")
    if any(getattr(changed, name) != getattr(document, name) for name in stream_fields):
        changed = msgspec.structs.replace(changed, assets_generation=document.assets_generation + 1)
    return changed


def acted(document: FlowDocument, what: str, detail: str) -> FlowDocument:
    """With an entry for the history, of something that changes nothing else in the document."""
    return msgspec.structs.replace(document, act=Act(what, detail, document.act.number + 1))


def marked(document: FlowDocument, mark: str) -> FlowDocument:
    """With the mark of the call that changes it, where it has one."""
    if not mark:
        return document
    return msgspec.structs.replace(document, requests=(*document.requests, mark)[-KEPT_MARKS:])


def give_ingress(document: FlowDocument, owner: str, **changes: object) -> FlowDocument:
    """Decides the ingress' owner; a barrier has to prove it."""
    return change(document, ingress=owner, ingress_confirmed=False, **changes)


def current_epoch(document: FlowDocument) -> int:
    """The epoch under which the next (or the present) start parks."""
    return document.parking_epoch + 1 if document.parking_used else document.parking_epoch


def owner_of(deployment: int) -> str:
    return deployment_owner(deployment)


def parked_under(epoch: int) -> str:
    return parking_owner(epoch)


def parks(document: FlowDocument) -> bool:
    """Whether the target begins with what was parked for it: at a start, and with RESTART."""
    return not document.active or document.rollout.strategy == Strategy.RESTART


def is_held(document: FlowDocument, deployment: int) -> bool:
    """Whether a target of RESTART must wait: something of an older deployment is left."""
    return (
        deployment == document.target
        and document.rollout.strategy == Strategy.RESTART
        and any(other != deployment for other in document.live)
    )


def kept_for(document: FlowDocument, version: int) -> frozenset[int]:
    """Deployments whose digests a version keeps pinned: those a rollback to it may use."""
    found = (document.last_deployments.get(str(version), 0), document.earlier_deployments.get(str(version), 0))
    return frozenset(found) - {0}


def without_deployment(document: FlowDocument, deployment: int) -> FlowDocument:
    """After nothing of a deployment is left."""
    return change(
        document,
        live=tuple(other for other in document.live if other != deployment),
        closed=tuple(other for other in document.closed if other != deployment),
        strict=tuple(other for other in document.strict if other != deployment),
        replaying=tuple(other for other in document.replaying if other != deployment),
    )


def without_target(document: FlowDocument) -> FlowDocument:
    """After the target took over or was given up."""
    return change(document, target=0, target_version=0, rollout=Rollout(), target_deadline=0.0)
