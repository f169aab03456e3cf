"""The planner's actions, applied as the real parts would apply them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import msgspec

from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase, DeploymentPlan, DeploymentState, PinPlan, StepPlan
from headrace.model.flow_graph import find_entry
from headrace.model.flow_spec import FlowSpec
from services.orchestrator.domain import actions as do
from services.orchestrator.domain.dead_letters import LettersView
from services.orchestrator.domain.documents import FlowDocument, current_epoch, parks, without_deployment
from services.orchestrator.domain.flow_states import RUNS
from services.orchestrator.domain.snapshot import ConsumerView, Progress, Snapshot
from tests.support.planned_mesh import FLOW, WORKSPACE, PlannedMesh, Refused


@dataclass
class ActingMesh(PlannedMesh):
    """`apply` takes one action; a plan that is too old is Refused where the real parts compare and set."""

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
