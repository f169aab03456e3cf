"""What the planner sees: decided (documents) and observed (broker, agent, sidecars), as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from headrace.model.deployment import DeploymentPlan, DeploymentState
from headrace.model.flow_hooks import HookRecord
from headrace.model.ingress_owner import NOBODY, IngressOwner, is_fenced
from headrace.model.names import instance_name
from headrace.model.route import Route
from headrace.model.subjects import deployment_owner, parking_owner
from services.orchestrator.domain.dead_letters import DEFAULT_LIMITS, LetterLimits, LettersView
from services.orchestrator.domain.documents import FlowDocument, OperationDocument


class Progress(StrEnum):
    """How far an instance is, in order; the sidecar's own words."""

    NONE = "NONE"
    SLEEPING = "SLEEPING"
    STARTING = "STARTING"
    WARM = "WARM"
    ACTIVE = "ACTIVE"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"
    FAILED = "FAILED"


# Of an instance that has begun to work.
WORKING = (Progress.ACTIVE, Progress.DRAINING, Progress.DRAINED)


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance as its agent reports it. `up` means that its socket is served."""

    name: str
    deployment: int
    step: str
    replica: int
    up: bool = False
    stopping: bool = False
    generation: int = 0
    starts: int = 0
    last_exit: str = ""


@dataclass(frozen=True, slots=True)
class StuckView:
    """A message that failed for good and waits, as its sidecar reports it."""

    message_id: str
    execution_id: str
    code: str
    error: str


@dataclass(frozen=True, slots=True)
class StatusView:
    """One instance as its sidecar reports it."""

    progress: Progress
    generation: int = 0
    in_flight: int = 0
    cause: str = ""
    cause_reason: str = ""
    log_lines: tuple[str, ...] = ()
    gave_way: bool = False
    # Messages that failed for good and wait (they count in `in_flight` too), the oldest of them, and the newest
    # resume of the flow that the sidecar knows of.
    stuck: int = 0
    stuck_message: StuckView | None = None
    resumed: int = 0
    # In an ordinary flow: it has had nothing to do for its step's timeout.
    may_sleep: bool = False
    # The shutdown hook has ended.
    concluded: bool = False

    @property
    def idle(self) -> bool:
        """It works on nothing; messages that are stuck wait."""
        return self.in_flight <= self.stuck

    @property
    def deciding(self) -> StatusView:
        """Without what changes with every message: of what is in flight only whether it is anything."""
        return replace(self, in_flight=0 if self.idle else self.stuck + 1)

    # (slot, generation) of a keyed step: what it pulls from or still holds something of.
    slots: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class StreamView:
    """The flow's stream: the part of its config that is decided here, messages per (owner, step, slot), and the
    sequence of the newest message it ever stored. Cursors are no messages: only who has some is told; nor are the
    messages that say who owns the ingress (clusters only): `says_owner` whether there are any, `owner` what they say.
    """

    config: Mapping[str, object]
    counts: Mapping[tuple[str, str, int], int] = field(default_factory=dict)
    last_sequence: int = 0
    cursors: frozenset[str] = frozenset()
    says_owner: bool = False
    owner: IngressOwner = NOBODY

    def waiting(self, owner: str) -> int:
        """Messages stored under an owner, barriers not counted."""
        return sum(n for (of, step, _), n in self.counts.items() if of == owner and not step.startswith("_"))

    def stored(self, owner: str, step: str, slot: int | None = None) -> int:
        """Messages stored for a step, or for one of its slots."""
        if slot is not None:
            return self.counts.get((owner, step, slot), 0)
        return sum(n for (of, to, _), n in self.counts.items() if of == owner and to == step)

    def takes(self, subject_filter: str) -> bool:
        subjects = self.config.get("subjects")
        return isinstance(subjects, tuple) and subject_filter in subjects


@dataclass(frozen=True, slots=True)
class ConsumerView:
    """A durable: the part of its config that is decided here, whether it is paused, how many messages it has
    delivered that are not acknowledged, how many it has still to deliver, and what rises whenever it delivers or is
    acknowledged (sequences of the stream)."""

    config: Mapping[str, object]
    paused: bool
    in_flight: int = 0
    pending: int = 0
    moved: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Since when (Unix seconds) a durable that has not moved shows nothing to do though this many messages are stored
    for it."""

    moved: tuple[int, int]
    since: float
    stored: int


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """Documents of one deployment; `plan` None when resolution failed or has not ended."""

    number: int
    plan: DeploymentPlan | None
    state: DeploymentState | None
    state_revision: int = 0
    # Of the plan as it is stored.
    plan_digest: str = ""
    # Read of those that are about to end.
    hooks: HookRecord | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything about one flow at one moment. `now` is Unix seconds."""

    now: float
    workspace: str
    flow: FlowDocument
    flow_revision: int
    deployments: Mapping[int, DeploymentView]
    stream: StreamView | None
    consumers: Mapping[str, ConsumerView]
    agent_known: bool
    instances: Mapping[str, InstanceView]
    statuses: Mapping[str, StatusView]
    route: Route | None
    wanted_route: Route
    operations: Mapping[str, OperationDocument]
    # Of this leader; 0 where nobody counts them.
    epoch: int = 0
    # How many servers of the broker are to keep the flow's stream.
    stream_copies: int = 1
    # The stream of dead letters; None where there is none (yet).
    letters: LettersView | None = None
    letter_limits: LetterLimits = DEFAULT_LIMITS
    # The stream of stimuli, where a live deployment keeps them.
    stimuli: LettersView | None = None
    route_revision: int = 0
    # By the name of the durable.
    suspicions: Mapping[str, Suspicion] = field(default_factory=dict)
    # Steps to which something was published a moment ago: it may not be stored yet.
    nudged: frozenset[str] = frozenset()

    @property
    def fenced(self) -> bool:
        """Whether the stream itself says who owns the ingress."""
        return is_fenced(self.stream_copies)

    @property
    def sees_switch(self) -> bool:
        """The stream as seen here is at least as new as the switch of the ingress: a server of a cluster that has
        lost its leadership, and does not know it yet, tells of the past."""
        return self.stream is not None and self.stream.last_sequence >= self.flow.ingress_sequence

    def phase_of(self, deployment: int) -> str:
        view = self.deployments.get(deployment)
        return str(view.state.phase) if view and view.state else ""

    def wanted_instances(self, deployment: int) -> list[InstanceView]:
        """All replicas of all steps of a deployment, as its documents want them."""
        view = self.deployments[deployment]
        if view.plan is None or view.state is None:
            return []
        return [
            InstanceView(
                instance_name(self.workspace, self.flow.flow, deployment, step.name, replica),
                deployment,
                step.name,
                replica,
            )
            for step in view.plan.steps
            for replica in range(view.state.replicas.get(step.name, 1))
        ]

    def all_drained(self, instances: Iterable[InstanceView], generation: int) -> bool:
        """Each says with this generation, or a later one, that it holds nothing, or is gone as its agent knows."""
        return all(
            (status := self.statuses.get(instance.name)) is not None
            and status.progress == Progress.DRAINED
            and status.generation >= generation
            for instance in instances
            if instance.name in self.instances
        )

    def waiting(self, owner: str) -> int:
        return self.stream.waiting(owner) if self.stream else 0

    def waiting_of(self, deployment: int) -> int:
        """Messages stored for a deployment, those parked for it included."""
        return sum(self.waiting(owner) for owner in self.owners_of(deployment))

    def waiting_at(self, deployment: int, step: str) -> int:
        """Messages stored for a step of a deployment, those parked for it included."""
        if self.stream is None:
            return 0
        return sum(self.stream.stored(owner, step) for owner in self.owners_of(deployment))

    def owners_of(self, deployment: int) -> tuple[str, ...]:
        """Under whom messages of a deployment are stored: itself, and what was parked for it."""
        plan = self.deployments[deployment].plan
        parked = (parking_owner(plan.parking_epoch),) if plan is not None and plan.parking_epoch else ()
        return (deployment_owner(deployment), *parked)
