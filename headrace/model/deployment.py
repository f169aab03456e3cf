"""The two documents of a deployment in KV, shared by orchestrator (writes) and sidecars (read).

`DeploymentPlan` (key `plan.<flow>.<n>`) is immutable: graph, pin set, config, policies, resolved once.
`DeploymentState` (key `state.<flow>.<n>`) is the mutable one: phase, generation, replicas. How a flow is sampled
outlives its deployments, so it is beside them (`headrace.model.sampling`).
Both are stored as msgspec JSON; the plan is addressed by the digest of its bytes.
"""

from __future__ import annotations

from enum import StrEnum
from hashlib import sha256
from typing import Any

import msgspec

from headrace.model.credential import CredentialRef
from headrace.model.cron import DEFAULT_ZONE
from headrace.model.flow_spec import (
    DEAD_LETTER,
    DEFAULT_IDLE_TIMEOUT_S,
    LATEST,
    ORDINARY,
    EdgeSpec,
    HistorySpec,
    RetryPolicy,
)


class DeploymentPhase(StrEnum):
    PREPARING = "PREPARING"
    WARM = "WARM"
    ACTIVE = "ACTIVE"
    DRAINING = "DRAINING"
    RETIRED = "RETIRED"
    FAILED = "FAILED"


# Phases in which a restarted sidecar goes on by itself.
WORKING_PHASES = frozenset({DeploymentPhase.ACTIVE, DeploymentPhase.DRAINING})


class PinPlan(msgspec.Struct, frozen=True):
    """What one step runs: never changed once written."""

    component: str
    revision_number: int
    digest: str
    interpreter: str
    sdk_version: str
    sidecar_version: str


class StepPlan(msgspec.Struct, frozen=True):
    """One step of a deployment. `kind` is `action`, `trigger` or `listener`; `every_s` makes a trigger a timer."""

    name: str
    kind: str
    function: str
    pin: PinPlan
    config: dict[str, Any]
    receivers: tuple[str, ...]
    prefetch: int
    timeout_s: float
    retry: RetryPolicy
    exclusive: bool = False
    every_s: float = 0.0
    rate_limit: float = 0.0
    # Where the step is keyed: see `flow_spec.StepSpec`. An unkeyed step has one slot.
    key: str = ""
    slots: int = 1
    exactly_once: bool = False
    on_error: str = DEAD_LETTER
    # By receiver: see `flow_spec.EdgeSpec`.
    edges: dict[str, EdgeSpec] = {}
    cron: str = ""
    time_zone: str = DEFAULT_ZONE
    catch_up: str = LATEST
    # In an ordinary flow: how long it has nothing to do before it sleeps.
    idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S
    # Name and version of its credential, as it was when the deployment was created; None where it names none.
    credential: CredentialRef | None = None

    # Who gets what fails here for good; empty: see `on_error`. `error_letter`: a dead letter is kept besides.
    error_step: str = ""
    error_letter: bool = False

    @property
    def successors(self) -> tuple[str, ...]:
        """Whoever can get a message from it."""
        return (*self.receivers, self.error_step) if self.error_step else self.receivers

    @property
    def is_timer(self) -> bool:
        """The mesh sends it ticks."""
        return bool(self.every_s or self.cron)

    @property
    def keyed(self) -> bool:
        """Whether its messages go to slots, each with one owner at a time."""
        return bool(self.key) or self.exactly_once


class MeshTrigger(msgspec.Struct, frozen=True):
    """A trigger that runs no process (`headrace.model.mesh_trigger`): a webhook, or a timer where it has an interval
    or a schedule."""

    name: str
    every_s: float = 0.0
    cron: str = ""
    time_zone: str = DEFAULT_ZONE
    catch_up: str = LATEST

    @property
    def is_timer(self) -> bool:
        """The mesh sends ticks in its name."""
        return bool(self.every_s or self.cron)


class DeploymentPlan(msgspec.Struct, frozen=True):
    """Graph, pins, config and policies of one deployment.

    `entry` is the step that stimuli go to: the trigger, or the receiver of the mesh's own trigger, which is
    `mesh_trigger` and none of the `steps`: these have instances.
    """

    workspace: str
    flow: str
    flow_type: str
    deployment: int
    version: int
    entry: str = msgspec.field(name="trigger")
    steps: tuple[StepPlan, ...]
    max_waiting: int
    reply_timeout_s: float
    parking_epoch: int
    ack_wait_s: float = 30.0
    duplicate_window_s: float = 120.0
    rate_limit: float = 0.0
    passthrough: bool = False
    history: HistorySpec | None = None
    # Made for replays through a named revision: it has a part of the steps, and gets nothing from the ingress.
    side: bool = False
    mesh_trigger: MeshTrigger | None = None
    # The broker syncs every write: what many inputs become is stored together (headrace.edge.group_commit).
    group_commits: bool = False

    @property
    def trigger(self) -> str:
        """Name of the step that starts executions, as the flow calls it."""
        return self.mesh_trigger.name if self.mesh_trigger is not None else self.entry

    @property
    def timer(self) -> StepPlan | MeshTrigger | None:
        """What the mesh sends ticks for; None where the flow has no timer."""
        source = self.mesh_trigger if self.mesh_trigger is not None else self.step(self.entry)
        return source if source.is_timer else None

    def may_sleep(self, name: str) -> bool:
        """Whether a step sleeps when it is idle: any of an ordinary flow, but a listener, whose source nobody would
        hear."""
        return self.flow_type == ORDINARY and self.step(name).kind != "listener"

    def step(self, name: str) -> StepPlan:
        """The step of that name; KeyError if there is none."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)


class DrainDecision(msgspec.Struct, frozen=True):
    """A person's choice for a deployment that drains for too long, and how far it was carried out.

    `choice` is WAIT, DEAD_LETTER or MOVE. Messages with a stream sequence up to `through` are stored elsewhere (or
    gone); those up to `claimed` were being stored since `claimed_at`, when the orchestrator last wrote this.
    """

    operation: str
    choice: str
    decided_at: float
    until: float = 0.0
    incarnation: int = 0
    through: int = 0
    claimed: int = 0
    claimed_at: float = 0.0
    dead_lettered: int = 0
    moved: int = 0


class SlotOwner(msgspec.Struct, frozen=True):
    """Which replica pulls from a slot, and the state's generation at which it got it: part of the durable's name."""

    replica: int
    generation: int


class DeploymentState(msgspec.Struct, frozen=True):
    """Mutable side of a deployment; every change is a compare-and-set that raises `generation`."""

    phase: DeploymentPhase
    generation: int
    replicas: dict[str, int]
    cause: str = ""
    cause_reason: str = ""
    created_at: float = 0.0
    changed_at: float = 0.0
    start_ms: dict[str, float] = {}
    drain: DrainDecision | None = None
    # When a person last changed `replicas`.
    scaled_at: float = 0.0
    # How often the flow was resumed after a message had suspended it: its sidecars try what is stuck again.
    resumed: int = 0
    # Owners of the slots of each keyed step; the index is the slot.
    slots: dict[str, tuple[SlotOwner, ...]] = {}
    # When owners of slots last changed, and with which generation `replicas` last did.
    slots_moved_at: float = 0.0
    scaled_generation: int = 0
    # Since when the shutdown hook is waited for (Unix seconds); 0: it is not yet.
    concluding_since: float = 0.0
    # By step: version of its credential, where it was refreshed by hand since the plan was written.
    credentials: dict[str, int] = {}

    def credential_of(self, step: StepPlan) -> CredentialRef | None:
        """The credential that the step has to use: the plan's, unless it was refreshed."""
        planned = step.credential
        if planned is None or step.name not in self.credentials:
            return planned
        return CredentialRef(planned.name, self.credentials[step.name])


def encode_plan(plan: DeploymentPlan) -> bytes:
    """Bytes of the plan as stored: the same plan gives the same bytes."""
    return msgspec.json.encode(plan, order="deterministic")


def plan_digest(raw: bytes) -> str:
    return "sha256:" + sha256(raw).hexdigest()


def decode_plan(raw: bytes) -> DeploymentPlan:
    return msgspec.json.decode(raw, type=DeploymentPlan)


def encode_state(state: DeploymentState) -> bytes:
    return msgspec.json.encode(state)


def decode_state(raw: bytes) -> DeploymentState:
    return msgspec.json.decode(raw, type=DeploymentState)
