"""What there is of one flow, as plain values, and what goes on there by itself.

Documents with revisions, a stream with its consumers, an agent's instances: a test decides when instances come up,
warm, fail or die, and when messages come and are handled.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase, DeploymentPlan, DeploymentState
from headrace.model.flow_graph import find_entry
from headrace.model.flow_hooks import HookRecord
from headrace.model.flow_spec import FlowSpec
from headrace.model.route import Route
from services.orchestrator.domain.dead_letters import LettersView
from services.orchestrator.domain.documents import FlowDocument, OperationDocument
from services.orchestrator.domain.snapshot import ConsumerView, InstanceView, Progress, StatusView
from tests.support.memory_bucket import matches

WORKSPACE = "default"
FLOW = "orders"


class Refused(Exception):
    """A compare-and-set that came too late."""


@dataclass
class PlannedMesh:
    """One flow and all that belongs to it."""

    spec: FlowSpec
    now: float = 1000.0
    flow: FlowDocument = field(init=False)
    revision: int = 1
    versions: dict[int, FlowSpec] = field(default_factory=dict)
    plans: dict[int, DeploymentPlan] = field(default_factory=dict)
    states: dict[int, tuple[DeploymentState, int]] = field(default_factory=dict)
    stream: dict[str, object] | None = None
    stored: list[tuple[str, str, int]] = field(default_factory=list)
    consumers: dict[str, ConsumerView] = field(default_factory=dict)
    agent_known: bool = True
    instances: dict[str, InstanceView] = field(default_factory=dict)
    # The agent's memory: no call below the highest generation that it has seen of an instance.
    fence: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, StatusView] = field(default_factory=dict)
    route: Route | None = None
    operations: dict[str, OperationDocument] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    accepted: int = 0
    handled: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    dead: set[int] = field(default_factory=set)
    letters: LettersView | None = None
    stimuli: LettersView | None = None
    handled_by: list[tuple[int, str]] = field(default_factory=list)
    owners_seen: list[str] = field(default_factory=list)
    begun: int = 0
    # By deployment: what its hooks left behind; and which deployments ran their shutdown hook.
    hooks: dict[int, HookRecord] = field(default_factory=dict)
    concluded: list[int] = field(default_factory=list)
    route_revision: int = 0

    def __post_init__(self) -> None:
        self.flow = FlowDocument(FLOW, self.spec.type, self.now, draft=self.spec)

    # What goes on by itself.

    def inject(self) -> bool:
        """One message to the ingress; False when the broker refuses it."""
        if self.stream is None or subjects.ingress_filter(WORKSPACE, FLOW) not in self._subjects():
            return False
        transform = self.stream["subject_transform"]
        assert isinstance(transform, dict)
        owner = str(transform["dest"]).split(".")[3]
        self.stored.append((owner, find_entry(self.spec).name, self.accepted))
        self.accepted += 1
        self.owners_seen.append(owner)
        return True

    # What the world does.

    def handle_one(self) -> None:
        """An active instance handles the oldest message that its consumer is given."""
        for message in list(self.stored):
            owner, step, number = message
            for name, consumer in self.consumers.items():
                subject = subjects.data_subject(WORKSPACE, FLOW, owner, step)
                if consumer.paused or not any(matches(item, subject) for item in _filters(consumer)):
                    continue
                deployment = int(name.split("_")[0][1:])
                working = [
                    status
                    for instance, status in self.statuses.items()
                    if self.instances[instance].deployment == deployment
                    and self.instances[instance].step == step
                    and status.progress in (Progress.ACTIVE, Progress.DRAINING, Progress.DRAINED)
                    and not status.gave_way
                ]
                if not working:
                    continue
                self._check_order(deployment, step)
                self.stored.remove(message)
                self.handled_by.append((deployment, step))
                receivers = self.plans[deployment].step(step).receivers
                own = subjects.deployment_owner(deployment)
                if receivers and subjects.owner_filter(WORKSPACE, FLOW, own) in self._subjects():
                    self.stored.append((own, receivers[0], number))
                else:
                    assert not receivers, "an output was refused while its input was being handled"
                    self.handled.add(number)
                return

    def _check_order(self, deployment: int, step: str) -> None:
        """Strict order: the first step begins when every older deployment is over."""
        if deployment in self.flow.strict and step == self.plans[deployment].entry:
            older = [number for number in self.flow.live if number < deployment]
            early = [number for number in older if self._phase(number) not in ("RETIRED", "FAILED")]
            assert not early, f"d{deployment} has begun before {early} drained"

    def come_up(self, name: str) -> None:
        view = self.instances[name]
        if not view.up:
            self.instances[name] = dataclasses.replace(view, up=True)
            state = self.states[view.deployment][0]
            self.statuses[name] = StatusView(Progress.SLEEPING, 0)
            if state.phase in (DeploymentPhase.ACTIVE, DeploymentPhase.DRAINING):  # it goes on by itself
                self.statuses[name] = StatusView(Progress.ACTIVE, state.generation)

    def warm(self, name: str, *, fail: bool = False) -> None:
        status = self.statuses.get(name)
        if status is not None and status.progress == Progress.STARTING:
            to = Progress.FAILED if fail else Progress.WARM
            self.statuses[name] = dataclasses.replace(status, progress=to, cause="it broke" if fail else "")

    def die(self, name: str) -> None:
        """The agent lost it; nobody starts it again by itself."""
        self.instances.pop(name, None)
        self.statuses.pop(name, None)

    def settle(self) -> None:
        """Everybody does what can be done: instances come up, warm and drain; messages are handled."""
        self.agent_known = True
        for name in list(self.instances):
            self.come_up(name)
            self.warm(name)
            status = self.statuses[name]
            if status.progress == Progress.FAILED and self._phase(self.instances[name].deployment) in (
                "ACTIVE",
                "DRAINING",
            ):
                self.statuses[name] = dataclasses.replace(status, progress=Progress.ACTIVE)
        self.rest()
        for _ in range(3):
            self.handle_one()

    def rest(self) -> None:
        """What works holds nothing at this moment, so in an ordinary flow it says that it may sleep."""
        for name, status in self.statuses.items():
            view = self.instances[name]
            if status.progress == Progress.ACTIVE and self.plans[view.deployment].may_sleep(view.step):
                self.statuses[name] = dataclasses.replace(status, may_sleep=True)

    def _phase(self, deployment: int) -> str:
        return str(self.states[deployment][0].phase) if deployment in self.states else ""

    # Documents and the stream.

    def _ingress(self) -> str:
        if self.stream is None or "subject_transform" not in self.stream:
            return ""
        transform = self.stream["subject_transform"]
        assert isinstance(transform, dict)
        return str(transform["dest"]).split(".")[3]

    def _subjects(self) -> tuple[str, ...]:
        listed = self.stream["subjects"] if self.stream else ()
        assert isinstance(listed, tuple)
        return listed

    def _write_flow(self, document: FlowDocument, revision: int | None = None) -> None:
        if revision is not None and revision != self.revision:
            raise Refused
        self.flow = document
        self.revision += 1

    def _write_state(self, deployment: int, state: DeploymentState, revision: int) -> None:
        if self.states.get(deployment, (None, 0))[1] != revision:
            raise Refused
        self.states[deployment] = (state, revision + 1)


def _filters(consumer: ConsumerView) -> tuple[str, ...]:
    several = consumer.config.get("filter_subjects")
    return tuple(several) if isinstance(several, tuple) else (str(consumer.config.get("filter_subject")),)
