"""A mesh in memory for the planner: what people do there, what the planner sees of it, and the laws.

`planned_mesh` is what there is, `planned_actions` what becomes of a plan; a test also decides what of a plan is lost
in a crash. Laws are checked at every step: see `check_laws`.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from headrace.model.flow_spec import FlowSpec, StepSpec
from headrace.model.route import Route
from services.orchestrator.domain import flow_verbs, rollout_verbs
from services.orchestrator.domain.cancellation import cancel
from services.orchestrator.domain.documents import FlowDocument, OperationIntent, Rollout, Strategy, is_held
from services.orchestrator.domain.drain_choice import begin_drain_choice
from services.orchestrator.domain.flow_states import RUNS, FlowState
from services.orchestrator.domain.planner import make_plan
from services.orchestrator.domain.scaling import begin_scale
from services.orchestrator.domain.snapshot import DeploymentView, Snapshot, StreamView
from services.orchestrator.domain.suspension import begin_resume, begin_suspend
from tests.support.planned_actions import ActingMesh
from tests.support.planned_mesh import FLOW, WORKSPACE, Refused

SPEC = FlowSpec(
    "realtime",
    (
        StepSpec("order", "hook", to=("price",)),
        StepSpec("price", "work", to=("check",), replicas=2),
        StepSpec("check", "work"),
    ),
)


@dataclass
class World(ActingMesh):
    """One flow, its people and its orchestrator."""

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

    def sweep_pins(self) -> None:
        """What the leader does now and then: pins of deployments that are over go, if they were written too late."""
        live = {f"d{number}" for number in self.flow.live}
        self.pinned = {holder for holder in self.pinned if holder in live or not holder.startswith("d")}

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


def fresh(spec: FlowSpec = SPEC) -> World:
    """Published and at rest, not started."""
    world = World(spec)
    world.verb("publish")
    world.converge()
    return world
