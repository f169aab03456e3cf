"""Deployments beside the one that runs, for dead letters that go through a named revision: the failed step with that
revision, and what comes after it with the pins of the deployment that runs.

One is DRAINING from its birth: it gets nothing from the ingress, handles the letters that are sent to it, and retires.
So a letter's message meets one pin set, as every other does. While letters are being sent it is kept from retiring
(`FlowDocument.replaying`), by whoever leads.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from headrace.model.deployment import DeploymentPhase, DeploymentPlan, DeploymentState, PinPlan, StepPlan
from headrace.model.errors import InvalidInput, WrongState
from headrace.wire.step_checks import Found, merged, problems_of
from services.orchestrator.domain.documents import FlowDocument, change
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.leadership import generation_of
from services.orchestrator.domain.slot_handover import first_owners
from services.orchestrator.resolution import Resolver
from services.orchestrator.snapshot_reader import SnapshotReader
from services.orchestrator.stores import Stores
from services.orchestrator.wall_clock import WallClock

FIELD = "revision"


@dataclass
class SideDeployments:
    """Of one workspace."""

    stores: Stores
    reader: SnapshotReader
    resolver: Resolver
    clock: WallClock

    async def planned(self, flow: str, step: str, revision: str) -> DeploymentPlan:
        """What would be made. `revision`: number, version, tag or digest of the step's component. InvalidInput where
        there is no such revision, or the step cannot run it; WrongState where the flow does not run."""
        document, _ = await self.stores.existing_flow(flow)
        running = await self.reader.plan(flow, document.active) if document.active else None
        if running is None or document.state in (FlowState.STOPPED, FlowState.STOPPING):
            raise WrongState(
                f"flow {flow!r} is {document.state}: its dead letters cannot be replayed",
                reason="FLOW_NOT_RUNNING",
                next_step=f"Start it: headrace flow start {flow}",
                metadata={"flow": flow, "state": str(document.state)},
            )
        if all(item.name != step for item in running.steps):
            raise InvalidInput.at(
                "step", step, f"is not a step of what runs: {', '.join(item.name for item in running.steps)}",
                reason="STEP_NOT_FOUND", next_step="Publish a version that has it, or discard its letters",
            )  # fmt: skip
        found = await self._found(flow, document, running.step(step), revision)
        return side_plan(running, step, document.next_deployment, found)

    async def make(self, flow: str, step: str, revision: str) -> int:
        """Makes one, or takes the one that is there for the same; its number. It does not retire before `release`."""
        plan = await self.planned(flow, step, revision)
        number = await self._known(flow, plan)
        if number and await self._keep(flow, number):
            return number
        number = await self._number(flow)
        plan = msgspec.structs.replace(plan, deployment=number)
        digests = {item.pin.digest for item in plan.steps}
        holder = (flow, f"d{number}", f"flows/{flow}/deployments/{number}")
        await self.stores.pin(digests, *holder)
        await self._found(flow, (await self.stores.existing_flow(flow))[0], plan.step(step), plan.step(step).pin.digest)
        await self.stores.create_plan(plan)
        document, _ = await self.stores.existing_flow(flow)
        generation, now = generation_of(0, document.leader_epoch), self.clock.now()
        replicas = {item.name: 1 for item in plan.steps}
        state = DeploymentState(
            DeploymentPhase.DRAINING,
            generation,
            replicas,
            created_at=now,
            changed_at=now,
            slots=first_owners(plan, replicas, generation),
        )
        await self.stores.write_state(flow, number, state, 0)

        async def live(found: FlowDocument) -> FlowDocument:
            if found.state in (FlowState.STOPPED, FlowState.STOPPING):
                raise WrongState(
                    f"flow {flow!r} is being stopped", reason="FLOW_NOT_RUNNING", next_step="Start it again"
                )
            return change(found, live=(*found.live, number), replaying=(*found.replaying, number))

        await self.stores.change_flow(flow, live)
        # Whoever took the lead meanwhile may have swept the pins of what was not listed yet.
        await self.stores.pin(digests, *holder)
        return number

    async def _number(self, flow: str) -> int:
        taken = 0

        async def next_one(document: FlowDocument) -> FlowDocument:
            nonlocal taken
            taken = document.next_deployment
            return change(document, next_deployment=taken + 1)

        await self.stores.change_flow(flow, next_one)
        return taken

    async def _known(self, flow: str, wanted: DeploymentPlan) -> int:
        document, _ = await self.stores.existing_flow(flow)
        for number in document.live:
            plan = await self.reader.plan(flow, number)
            if plan is not None and plan.side and msgspec.structs.replace(plan, deployment=wanted.deployment) == wanted:
                return number
        return 0

    async def _keep(self, flow: str, number: int) -> bool:
        """False where it is about to retire."""
        kept = False

        async def keep(document: FlowDocument) -> FlowDocument:
            nonlocal kept
            kept = number in document.live and number not in document.closed
            return change(document, replaying=(*document.replaying, number)) if kept else document

        await self.stores.change_flow(flow, keep)
        return kept

    async def _found(self, flow: str, document: FlowDocument, step: StepPlan, revision: str) -> Found:
        spec = (await self.reader.version(flow, document.active_version)).spec
        named = f"{step.pin.component}@{revision}"
        written = next(item for item in spec.steps if item.name == step.name)
        found = await self.resolver.found(msgspec.structs.replace(written, component=named), FIELD)
        problems = problems_of(0, found.step, found.function, step.kind != "action")
        if problems:
            raise merged(problems)
        return found


def side_plan(running: DeploymentPlan, step: str, number: int, found: Found) -> DeploymentPlan:
    """The step with the found revision, and all that its messages can come to, as it runs."""
    reached, pending = {step}, [step]
    while pending:
        following = {*running.step(pending.pop()).successors} - reached
        reached |= following
        pending += following
    pin, revision = running.step(step).pin, found.revision
    other = PinPlan(
        pin.component, revision.number, revision.digest, pin.interpreter, pin.sdk_version, pin.sidecar_version
    )
    first = msgspec.structs.replace(running.step(step), pin=other, function=found.function.name)
    steps = (first, *(item for item in running.steps if item.name in reached and item.name != step))
    return msgspec.structs.replace(
        running,
        deployment=number,
        entry=step,
        steps=steps,
        parking_epoch=0,
        mesh_trigger=None,
        history=None,
        side=True,
    )
