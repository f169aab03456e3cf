"""What the planner may ask for. The actions of one plan do not depend on each other's order.

`key` names what an action touches: while one of a key is being done, no second one of it is begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from headrace.model.deployment import DeploymentState
from headrace.model.route import Route
from services.orchestrator.domain.documents import FlowDocument, OperationDocument
from services.orchestrator.domain.snapshot import InstanceView


@dataclass(frozen=True, slots=True)
class UpdateFlow:
    """Compare-and-set of the flow document."""

    document: FlowDocument
    why: str


@dataclass(frozen=True, slots=True)
class SetState:
    """Compare-and-set of a deployment's state."""

    deployment: int
    state: DeploymentState
    why: str


@dataclass(frozen=True, slots=True)
class WriteOperation:
    """Writes an operation's document (begun, or done)."""

    operation: OperationDocument


@dataclass(frozen=True, slots=True)
class WriteRoute:
    route: Route


@dataclass(frozen=True, slots=True)
class Resolve:
    """References to digests, pins, plan and the first state; a permanent refusal is written as FAILED."""

    deployment: int
    version: int


@dataclass(frozen=True, slots=True)
class EnsureStream:
    config: Mapping[str, object]
    create: bool
    why: str


@dataclass(frozen=True, slots=True)
class EnsureConsumer:
    config: Mapping[str, object]
    paused: bool
    recreate: bool = False


@dataclass(frozen=True, slots=True)
class PauseConsumer:
    name: str
    paused: bool


@dataclass(frozen=True, slots=True)
class DeleteConsumer:
    name: str


@dataclass(frozen=True, slots=True)
class ConfirmIngress:
    """Proves that the ingress belongs to the decided owner (on a cluster it is written), then notes it in the flow
    document."""

    owner: str


@dataclass(frozen=True, slots=True)
class PurgeBarriers:
    """Removes barriers that a killed orchestrator left behind."""

    owner: str


@dataclass(frozen=True, slots=True)
class PurgeCursors:
    """Removes the cursors of a deployment that is over."""

    owner: str


@dataclass(frozen=True, slots=True)
class PurgeOwners:
    """Removes what a stream says of the ingress' owner, where its transform decides."""


@dataclass(frozen=True, slots=True)
class DropMessages:
    """Counts what is stored into the operation's document, then purges it: nothing that is stored after the sequence
    `through`."""

    operation: str
    count: int
    through: int


@dataclass(frozen=True, slots=True)
class SettleMessages:
    """Stores the next batch of what waits for a deployment elsewhere, as a person chose, then removes it."""

    deployment: int


@dataclass(frozen=True, slots=True)
class MoveStrays:
    """Stores the next batch of what lies in these places (owner, step, slot), which nobody reads, where it belongs."""

    places: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True)
class RedeliverStuck:
    """Lets a durable begin anew that has not moved and has nothing to deliver, though messages are stored under its
    filters."""

    durable: str
    filters: tuple[str, ...]
    moved: tuple[int, int]
    stored: int


@dataclass(frozen=True, slots=True)
class EnsureLetters:
    """The stream of the flow's dead letters."""

    config: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class EnsureStimuli:
    """The stream of what started the flow's executions."""

    config: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class FinishLetters:
    """Finishes the replay or discard of dead letters that an orchestrator began and did not live to end."""


@dataclass(frozen=True, slots=True)
class RecordHistory:
    """Stores the entries that wait in the flow's document, then takes them out."""


@dataclass(frozen=True, slots=True)
class StartInstance:
    instance: InstanceView
    generation: int


@dataclass(frozen=True, slots=True)
class StopInstance:
    name: str
    generation: int


# Verb of a `CallInstance`: no new messages, finish what is held.
GIVE_WAY = "GiveWay"
# And: the deployment is over, run the shutdown hook.
CONCLUDE = "Conclude"


@dataclass(frozen=True, slots=True)
class CallInstance:
    """A lifecycle call: `Prepare`, `Activate`, `Drain`, or `GiveWay` (a `Drain` of one instance too many)."""

    name: str
    verb: str
    generation: int
    # Of a keyed step: (slot, generation) of all that it owns now.
    slots: tuple[tuple[int, int], ...] = ()
    # How often the flow was resumed after a message had suspended it.
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class Forget:
    """Nothing of a deployment is left: its pins go (a version keeps those it ran), then it leaves `live`."""

    deployment: int
    version: int
    keep_for_version: bool


Action: TypeAlias = (
    UpdateFlow
    | SetState
    | WriteOperation
    | WriteRoute
    | Resolve
    | EnsureStream
    | EnsureConsumer
    | PauseConsumer
    | DeleteConsumer
    | ConfirmIngress
    | PurgeBarriers
    | PurgeCursors
    | PurgeOwners
    | DropMessages
    | SettleMessages
    | MoveStrays
    | RedeliverStuck
    | EnsureLetters
    | EnsureStimuli
    | FinishLetters
    | RecordHistory
    | StartInstance
    | StopInstance
    | CallInstance
    | Forget
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions for now, and after how many seconds to look again though nothing is reported (None: the resync)."""

    actions: tuple[Action, ...]
    recheck_s: float | None = None
