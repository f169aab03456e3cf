"""A mesh in memory for the planner: documents with revisions, a broker, an agent and sidecars, all plain values.

The planner's actions are applied as the real parts would apply them; a test decides when instances come up, warm,
fail or die, when messages come and are handled, and what of a plan is lost in a crash. Laws are checked at every
step: see `check_laws`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import msgspec

from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase, DeploymentPlan, DeploymentState, PinPlan, StepPlan
from headrace.model.flow_graph import find_entry
from headrace.model.flow_hooks import HookRecord
from headrace.model.flow_spec import FlowSpec
from headrace.model.route import Route
from services.orchestrator.domain import actions as do
from services.orchestrator.domain import flow_verbs, rollout_verbs
from services.orchestrator.domain.cancellation import cancel
from services.orchestrator.domain.dead_letters import LettersView
from services.orchestrator.domain.documents import (
    FlowDocument,
    OperationDocument,
    OperationIntent,
    Rollout,
    Strategy,
    current_epoch,
    is_held,
    parks,
    without_deployment,
)
from services.orchestrator.domain.drain_choice import begin_drain_choice
from services.orchestrator.domain.flow_states import RUNS, FlowState
from services.orchestrator.domain.planner import make_plan
from services.orchestrator.domain.scaling import begin_scale
from services.orchestrator.domain.snapshot import (
    ConsumerView,
    DeploymentView,
    InstanceView,
    Progress,
    Snapshot,
    StatusView,
    StreamView,
)
from services.orchestrator.domain.suspension import begin_resume, begin_suspend
from tests.support.memory_bucket import matches

WORKSPACE = "default"
FLOW = "orders"


class Refused(Exception):
    """A compare-and-set that came too late."""


@dataclass
class World:
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

    # What a person does.

    def verb(
        self, name: str, mode: str = "DRAIN", limit_s: float = 0.0, *, restart: bool = False, strict: bool = False
    ) -> None:
        """May raise WrongState, as it would for a person."""
        self.begun += 1
        deadline = self.now + limit_s if limit_s else 0.0
        intent = OperationIntent(f"{name}-{self.begun}", name, created_at=self.now, deadline=deadline)
        strategy = Strategy.RESTART if restart else Strategy.WARM_SWITCH
        rollout = Rollout(strategy, strict_order=strict, limit_s=limit_s)
        if name == "publish":
            draft = self.flow.draft
            document, _ = rollout_verbs.begin_publish(self.flow, intent, rollout)
            assert draft is not None
            self.versions[document.latest_version] = draft
        elif name == "restart":
            spec = self.versions[self.flow.active_version or 1]
            document, _ = rollout_verbs.begin_restart(self.flow, spec, intent, rollout)
        elif name == "rollback":
            document, _ = rollout_verbs.begin_rollback(self.flow, 1, self.versions[1], intent, rollout)
        elif name == "start":
            version = flow_verbs.pick_version(self.flow, 0)
            document, _ = flow_verbs.begin_start(self.flow, version, self.versions[version], intent)
        elif name == "stop":
            document, _ = flow_verbs.begin_stop(self.flow, mode, intent)
        else:
            document = self._intervene(intent)
        self._write_flow(document)

    def _intervene(self, intent: OperationIntent) -> FlowDocument:
        flow = self.flow
        if intent.verb == "cancel":
            return cancel(flow, flow.operation.id if flow.operation else "none")
        if intent.verb in ("wait", "dead-letter", "move"):
            if flow.operation is not None:
                flow_verbs.check_free(flow, intent.verb)
            number = flow.live[0] if flow.live else 0
            view = DeploymentView(number, self.plans.get(number), *self.states.get(number, (None, 0)))
            choice = {"wait": "WAIT", "dead-letter": "DEAD_LETTER", "move": "MOVE"}[intent.verb]
            chosen = msgspec.structs.replace(intent, verb="drain-choice", choice=choice, incarnation=self.begun)
            return begin_drain_choice(flow, view, chosen)
        flow_verbs.check_free(flow, intent.verb)
        if intent.verb == "suspend":
            return begin_suspend(flow, intent, self.now, 1000.0, 0)
        if intent.verb == "resume":
            return begin_resume(flow, intent)
        step, replicas = self.spec.steps[-1].name, 1 + self.begun % 4  # never the trigger: it may be exclusive
        scaled = msgspec.structs.replace(intent, verb="scale", step=step, replicas=replicas)
        return begin_scale(flow, self.plans.get(flow.active), scaled)

    def draft(self) -> None:
        self._write_flow(flow_verbs.set_draft(self.flow, self.spec))

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

    # What the orchestrator does.

    def snapshot(self) -> Snapshot:
        intents = [*self.flow.overtaken, *([self.flow.operation] if self.flow.operation else [])]
        numbers = set(self.flow.live) | ({self.flow.operation.deployment} if self.flow.operation else set()) - {0}
        counts: dict[tuple[str, str, int], int] = {}
        for owner, step, _ in self.stored:
            counts[owner, step, 0] = counts.get((owner, step, 0), 0) + 1
        version = self.flow.active_version or self.flow.target_version or self.flow.latest_version
        state = str(self.flow.state) if self.flow.has_stream else "STOPPED"
        wanted_route = Route(FLOW, state, version=version, deployment=self.flow.active or self.flow.target)
        if self.flow.suspension is not None and self.flow.suspension.reached:
            wanted_route = msgspec.structs.replace(wanted_route, refuses="SUSPEND_LIMIT")
        return Snapshot(
            now=self.now,
            workspace=WORKSPACE,
            flow=self.flow,
            flow_revision=self.revision,
            deployments={
                number: DeploymentView(
                    number, self.plans.get(number), *self.states.get(number, (None, 0)), hooks=self.hooks.get(number)
                )
                for number in numbers
            },
            stream=StreamView(dict(self.stream), counts) if self.stream is not None else None,
            consumers=dict(self.consumers),
            agent_known=self.agent_known,
            instances=dict(self.instances),
            statuses={name: status for name, status in self.statuses.items() if self.instances[name].up},
            route=self.route,
            route_revision=self.route_revision,
            wanted_route=wanted_route,
            operations={intent.id: self.operations[intent.id] for intent in intents if intent.id in self.operations},
            letters=self.letters,
            stimuli=self.stimuli,
        )

    def apply(self, snapshot: Snapshot, action: do.Action) -> None:
        """Refused when the snapshot is too old for a compare-and-set."""
        match action:
            case do.UpdateFlow():
                self._write_flow(action.document, snapshot.flow_revision)
            case do.SetState():
                self._write_state(
                    action.deployment, action.state, snapshot.deployments[action.deployment].state_revision
                )
            case do.WriteOperation():
                if not (action.operation.id in self.operations and self.operations[action.operation.id].done):
                    self.operations[action.operation.id] = action.operation
            case do.WriteRoute():
                if snapshot.route_revision != self.route_revision:
                    raise Refused
                self.route, self.route_revision = action.route, self.route_revision + 1
            case do.Resolve():
                self._resolve(snapshot, action)
            case do.StartInstance():
                self._pass_fence(action.instance.name, action.generation)
                if action.instance.name not in self.instances:
                    view = dataclasses.replace(action.instance, generation=action.generation, starts=1)
                    self.instances[view.name] = view
            case do.StopInstance():
                self._stop(action)
            case do.CallInstance():
                self._call(action)
            case do.Forget():
                self.pinned.discard(f"d{action.deployment}")
                if action.keep_for_version:
                    self.pinned.add(f"v{action.version}")
                self._write_flow(without_deployment(snapshot.flow, action.deployment), snapshot.flow_revision)
            case _:
                self._apply_asset(snapshot, action)

    def _apply_asset(self, snapshot: Snapshot, action: do.Action) -> None:
        match action:
            case do.EnsureStream():
                self.stream = dict(action.config)
            case do.EnsureLetters():
                self.letters = LettersView(dict(action.config))
            case do.EnsureStimuli():
                self.stimuli = LettersView(dict(action.config))
            case do.EnsureConsumer():
                self.consumers[str(action.config["durable_name"])] = ConsumerView(dict(action.config), action.paused)
            case do.PauseConsumer():
                if action.name in self.consumers:
                    held = self.consumers[action.name]
                    self.consumers[action.name] = dataclasses.replace(held, paused=action.paused)
            case do.DeleteConsumer():
                self.consumers.pop(action.name, None)
            case do.ConfirmIngress():
                if self._ingress() != action.owner:
                    raise Refused
                confirmed = msgspec.structs.replace(snapshot.flow, ingress_confirmed=True)
                self._write_flow(confirmed, snapshot.flow_revision)
            case do.PurgeBarriers():
                pass
            case do.SettleMessages():
                self._settle_messages(snapshot, action.deployment)
            case do.MoveStrays():
                self._move_strays(snapshot, action)
            case do.DropMessages():
                assert snapshot.flow.stop_mode == "DROP", "messages are dropped only where a person said so"
                if action.operation in self.operations:
                    document = self.operations[action.operation]
                    self.operations[action.operation] = msgspec.structs.replace(document, dropped=action.count)
                self.dropped |= {number for _, _, number in self.stored}
                self.stored.clear()

    def _settle_messages(self, snapshot: Snapshot, number: int) -> None:
        state, revision = self.states[number]
        if revision != snapshot.deployments[number].state_revision:
            raise Refused
        assert state.drain is not None
        assert not any(view.deployment == number for view in self.instances.values()), "it is still being worked on"
        own = {subjects.deployment_owner(number), subjects.parking_owner(self.plans[number].parking_epoch)}
        to = subjects.deployment_owner(snapshot.flow.active)
        if state.drain.choice == "MOVE" and subjects.owner_filter(WORKSPACE, FLOW, to) not in self._subjects():
            raise Refused
        taken = [message for message in self.stored if message[0] in own]
        self.stored = [message for message in self.stored if message[0] not in own]
        if state.drain.choice == "MOVE":
            assert to not in own
            self.stored += [(to, step, message) for _, step, message in taken]
        else:
            self.dead |= {message for _, _, message in taken}
        self._write_state(number, state, revision)

    def _move_strays(self, snapshot: Snapshot, action: do.MoveStrays) -> None:
        """Here every message for the trigger is a stimulus."""
        self._write_flow(snapshot.flow, snapshot.flow_revision)
        trigger = find_entry(self.spec).name
        to = snapshot.flow.ingress or subjects.parking_owner(current_epoch(snapshot.flow))
        strays = [message for message in self.stored if (message[0], message[1], 0) in action.places]
        self.stored = [message for message in self.stored if message not in strays]
        self.stored += [(to, step, number) for _, step, number in strays if step == trigger]
        self.dead |= {number for _, step, number in strays if step != trigger}

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

    def _resolve(self, snapshot: Snapshot, action: do.Resolve) -> None:
        """Pins, the plan (written once, by whoever is first), then the state by compare-and-set."""
        spec = self.versions[action.version]
        self.pinned.add(f"d{action.deployment}")
        self.plans.setdefault(action.deployment, self._plan(snapshot.flow, action, spec))
        replicas = {step.name: step.replicas for step in spec.steps if step.has_process}
        state = DeploymentState(DeploymentPhase.PREPARING, 1, replicas, created_at=self.now)
        self._write_state(action.deployment, state, 0)

    def _plan(self, document: FlowDocument, action: do.Resolve, spec: FlowSpec) -> DeploymentPlan:
        pin = PinPlan("work", 1, "sha256:" + "0" * 64, "cpython", "0", "0")
        return DeploymentPlan(
            workspace=WORKSPACE,
            flow=FLOW,
            flow_type=spec.type,
            deployment=action.deployment,
            version=action.version,
            entry=find_entry(spec).name,
            steps=tuple(
                StepPlan(
                    step.name,
                    "action",
                    "work",
                    pin,
                    {},
                    step.to,
                    step.prefetch,
                    1.0,
                    step.retry,
                    key=step.key,
                    slots=step.slot_count,
                    exactly_once=step.exactly_once,
                )
                for step in spec.steps
                if step.has_process
            ),
            max_waiting=spec.max_waiting,
            reply_timeout_s=0.0,
            parking_epoch=current_epoch(document) if parks(document) else 0,
        )

    def sweep_pins(self) -> None:
        """What the leader does now and then: pins of deployments that are over go, if they were written too late."""
        live = {f"d{number}" for number in self.flow.live}
        self.pinned = {holder for holder in self.pinned if holder in live or not holder.startswith("d")}

    def _pass_fence(self, name: str, generation: int) -> None:
        if generation < self.fence.get(name, 0):
            raise Refused
        self.fence[name] = generation

    def _stop(self, action: do.StopInstance) -> None:
        self._pass_fence(action.name, action.generation)
        view = self.instances.get(action.name)
        if view is None:
            return
        wanted = self.states[view.deployment][0].replicas.get(view.step, 1) > view.replica
        gave_way = action.name in self.statuses and self.statuses[action.name].gave_way
        runs = self.flow.state in RUNS and view.deployment == self.flow.active
        assert not (runs and wanted and not gave_way), f"{action.name} of the running deployment is stopped"
        self.die(action.name)

    def _call(self, action: do.CallInstance) -> None:
        status = self.statuses.get(action.name)
        if status is None or action.generation < status.generation:
            return
        progress = status.progress
        if action.verb == "Conclude":
            number = self.instances[action.name].deployment
            self.hooks[number] = msgspec.structs.replace(self.hooks[number], concluded=True)
            self.concluded.append(number)
            status = dataclasses.replace(status, concluded=True)
        elif action.verb == "GiveWay":
            status, progress = dataclasses.replace(status, gave_way=True), Progress.DRAINED
        elif action.verb == "Prepare" and progress in (Progress.NONE, Progress.SLEEPING):
            progress = Progress.STARTING
        elif action.verb == "Activate" and progress in (Progress.WARM, Progress.ACTIVE):
            progress = Progress.ACTIVE
        elif action.verb == "Drain" and progress in (
            Progress.WARM,
            Progress.ACTIVE,
            Progress.DRAINING,
            Progress.DRAINED,
        ):
            progress = Progress.DRAINED
        self.statuses[action.name] = dataclasses.replace(status, progress=progress, generation=action.generation)

    # Laws.

    def check_laws(self) -> None:
        numbers = [number for _, _, number in self.stored]
        assert len(numbers) == len(set(numbers)), "a message is stored twice"
        everywhere = set(numbers) | self.handled | self.dropped | self.dead
        assert not self.handled & self.dead, "a message was handled and dead-lettered"
        assert everywhere == set(range(self.accepted)), "a message is lost"
        runs = [
            owner for owner, before in zip(self.owners_seen, ["", *self.owners_seen], strict=False) if owner != before
        ]
        assert len(runs) == len(set(runs)), f"the ingress went back: {runs}"
        held = {view.deployment for view in self.instances.values() if is_held(self.flow, view.deployment)}
        assert not held, f"RESTART: {held} has instances while an older deployment is left"
        if self.flow.active and self.flow.state in RUNS:
            assert f"d{self.flow.active}" in self.pinned, "what runs is not pinned"
        for number in self.flow.live:
            if self._phase(number) in ("PREPARING", "WARM", "ACTIVE", "DRAINING"):
                assert f"d{number}" in self.pinned, f"d{number} is not pinned"

    def converge(self, rounds: int = 60) -> None:
        """Plans and applies until nothing is left to do; AssertionError when it does not end."""
        for _ in range(rounds + len(self.stored)):
            self.settle()
            snapshot = self.snapshot()
            plan = make_plan(snapshot)
            if not plan.actions and not self._moving():
                return
            for action in plan.actions:
                try:
                    self.apply(snapshot, action)
                except Refused:
                    continue
                self.check_laws()
        raise AssertionError(f"no end: {make_plan(self.snapshot()).actions!r}\n{self.flow!r}")

    def _moving(self) -> bool:
        resting = (FlowState.STOPPED, FlowState.SUSPENDED)
        return (bool(self.stored) and self.flow.state not in resting) or self.flow.operation is not None


def _filters(consumer: ConsumerView) -> tuple[str, ...]:
    several = consumer.config.get("filter_subjects")
    return tuple(several) if isinstance(several, tuple) else (str(consumer.config.get("filter_subject")),)
