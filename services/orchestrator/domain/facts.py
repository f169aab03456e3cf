"""What is known of a flow when somebody asks why it stands still: plain values, gathered in two looks a moment apart.

Durations are seconds, and `None` where something never happened or is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CallFacts:
    """A message that an instance holds: it runs, waits for its next attempt, or was in work at a crash."""

    message_id: str
    execution_id: str
    attempt: int = 1
    runs_s: float = 0.0
    due_s: float = 0.0
    rebound: bool = False
    code: str = ""
    error: str = ""
    crashes: int = 0
    call: int = 0


@dataclass(frozen=True, slots=True)
class EdgeFacts:
    """A receiver that outputs wait for; `why` is `full` or `unanswered`."""

    receiver: str
    waiting: int
    why: str
    for_s: float


@dataclass(frozen=True, slots=True)
class StackFacts:
    """Where a call or a thread stands, innermost frame first."""

    call: int
    name: str
    frames: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """One wanted instance. `known`: its agent has it; `up`: its socket is served; `answers`: its sidecar answered
    just now. What follows is empty where it did not. `state` and `stage` are the API's words without prefix."""

    name: str
    known: bool = True
    up: bool = True
    answers: bool = True
    pid: int = 0
    starts: int = 1
    last_exit: str = ""
    state: str = "RUNNING"
    stage: str = "ACTIVE"
    stage_s: float = 0.0
    cause: str = ""
    cause_reason: str = ""
    component_pid: int = 1
    component_starts: int = 1
    component_process: str = "running"
    held: Mapping[str, int] = field(default_factory=dict)
    running: tuple[CallFacts, ...] = ()
    retrying: tuple[CallFacts, ...] = ()
    suspects: tuple[CallFacts, ...] = ()
    edges: tuple[EdgeFacts, ...] = ()
    broker_connected: bool = True
    broker_ms: float | None = 0.5
    paced: int = 0
    given_up: int = 0
    prefetch: int = 64
    since_input_s: float | None = None
    error_code: str = ""
    error_text: str = ""
    error_s: float | None = None
    stacks: tuple[StackFacts, ...] = ()
    stacks_how: str = ""
    stacks_problem: str = ""
    clock_ahead_s: float = 0.0
    """How far its clock is ahead of the orchestrator's."""
    done: int = 0
    """Messages finished between the two looks."""

    @property
    def in_hand(self) -> int:
        return sum(self.held.values())


@dataclass(frozen=True, slots=True)
class StepFacts:
    """One step of one deployment."""

    name: str
    deployment: int
    receivers: tuple[str, ...] = ()
    kind: str = "action"
    every_s: float = 0.0
    rate_limit: float = 0.0
    timeout_s: float = 60.0
    max_waiting: int = 10_000
    waiting: int = 0
    in_flight: int = 0
    oldest_s: float | None = None
    paused: bool = False
    instances: tuple[InstanceFacts, ...] = ()
    asleep: bool = False
    """Of an ordinary flow: it has no instance, and needs none until a message waits."""

    @property
    def moving(self) -> bool:
        """Something was finished between the two looks."""
        return any(instance.done for instance in self.instances)

    @property
    def has_work(self) -> bool:
        return self.waiting + self.in_flight > 0


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """One deployment that is not over."""

    number: int
    phase: str
    phase_s: float
    waiting: int = 0
    past_limit: bool = False
    """It drains, for longer than it may, and nobody has chosen what becomes of the rest."""


@dataclass(frozen=True, slots=True)
class SuspensionFacts:
    """Since when, what is kept, which limit was reached; step, message and error where a message suspended it."""

    for_s: float
    kept: int
    reached: str = ""
    step: str = ""
    message_id: str = ""
    execution_id: str = ""
    code: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class LetterFacts:
    """Dead letters of the last minute; of the newest: its step, reason, and age."""

    lately: int
    step: str = ""
    reason: str = ""
    error: str = ""
    newest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FlowFacts:
    """The flow's decided state."""

    name: str
    state: str
    trigger: str = ""
    """The step that what comes in goes to."""
    active: int = 0
    parked: int = 0
    operation: str = ""
    """Verb of the operation at work; empty for none."""
    operation_s: float = 0.0
    suspension: SuspensionFacts | None = None
    deployments: tuple[DeploymentFacts, ...] = ()
    letters: LetterFacts | None = None
    rate_limit: float = 0.0
    refused: Mapping[str, int] = field(default_factory=dict)
    """What gateways answered in the last minute instead of taking it, by reason."""
    since_request_s: float | None = None
    """How long ago a gateway saw the last request."""
    since_tick_s: float | None = None
    last_decision: str = ""


@dataclass(frozen=True, slots=True)
class MeshFacts:
    """What is true of all flows. `broker_problem` and `store_problem` are empty while ping and store are answered."""

    answered_by: str = ""
    leads: bool = True
    leader: str = ""
    leader_problem: str = ""
    broker_ms: float | None = 0.5
    broker_problem: str = ""
    broker_refuses: bool = False
    store_ms: float | None = 1.0
    store_problem: str = ""
    agent_known: bool = True
    gateways: int = 1
    broker_clock_ahead_s: float = 0.0
    """How far the broker's clock is ahead of the orchestrator's."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything. `flow` is None where the broker could not be asked for it; `looked_s` is the time between looks."""

    mesh: MeshFacts
    flow: FlowFacts | None = None
    steps: tuple[StepFacts, ...] = ()
    looked_s: float = 1.0
