"""Which code a trial is of, and asking the agent to try it: steps by the pins of their deployment, or of their draft,
or a component by its reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import msgspec

import headrace
from headrace.api.sidecar.v1 import trial_pb2
from headrace.client.errors import error_of_call
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.model import subjects
from headrace.model.credential import CredentialRef
from headrace.model.deployment import DeploymentPhase, DeploymentPlan, PinPlan, StepPlan, encode_plan
from headrace.model.errors import InvalidInput, NotFound, WrongState
from headrace.model.flow_spec import StepSpec
from headrace.model.names import parse_reference
from headrace.model.step_snapshot import PLAIN, StepSnapshot, decode_snapshot
from headrace.wire.step_checks import Found, kind_of
from services.orchestrator.credential_store import CredentialStore
from services.orchestrator.domain.documents import FlowDocument
from services.orchestrator.instance_observer import InstanceObserver
from services.orchestrator.resolution import INTERPRETER, Resolver
from services.orchestrator.snapshot_reader import SnapshotReader

LONGEST_S = 600.0
DEFAULT_LIMIT_S = 30.0
# What comes before the question: a bundle may have to be fetched, its environment built.
START_S = 130.0
COMPONENT_STEP = "component"
OVER = (DeploymentPhase.RETIRED, DeploymentPhase.FAILED)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a trial is of. `flow` is empty where a component was named; `live`: the deployment runs."""

    plan: DeploymentPlan
    step: StepPlan
    flow: str = ""
    live: bool = False

    @property
    def name(self) -> str:
        """`flows/orders/steps/price`; empty for a component."""
        return f"flows/{self.flow}/steps/{self.step.name}" if self.flow else ""


class Trials:
    """Through the agent; nothing of it is stored."""

    def __init__(
        self, reader: SnapshotReader, resolver: Resolver, observer: InstanceObserver, assets: JetStreamAssets
    ) -> None:
        self._assets = assets
        self.reader = reader
        self._resolver = resolver
        self.observer = observer

    @property
    def credentials(self) -> CredentialStore:
        """Those that steps name."""
        assert self._resolver.credentials is not None
        return self._resolver.credentials

    async def of_step(self, flow: str, step: str) -> Subject:
        """The step with the pins of the deployment that runs, else of the last one that did."""
        document, _ = await self.reader.stores.existing_flow(flow)
        number = document.active or max(document.last_deployments.values(), default=0)
        plan = await self.reader.plan(flow, number) if number else None
        if plan is None:
            raise WrongState(
                f"flow {flow!r} has never run: none of its steps is pinned",
                reason="NEVER_RAN",
                next_step=f"Try its draft (--draft), or start it: headrace flow start {flow}",
            )
        planned = _step_in(plan, step)
        found = await self.reader.stores.state(flow, number)
        live = number == document.active and found is not None and found[0].phase not in OVER
        credential = planned.credential
        if credential is not None:
            if live and found is not None:
                credential = found[0].credential_of(planned)
            else:  # what it used may be gone
                credential = await self.newest(credential.name, "credential")
        return Subject(plan, msgspec.structs.replace(planned, credential=credential), flow, live)

    async def of_draft(self, flow: str, step: str) -> Subject:
        """The step as the flow's draft has it, its reference resolved now."""
        document, _ = await self.reader.stores.existing_flow(flow)
        if document.draft is None:
            raise WrongState(
                f"flow {flow!r} has no draft",
                reason="NO_DRAFT",
                next_step="Apply one: headrace flow apply FILE; or try what runs: leave --draft out",
            )
        steps = {item.name: item for item in document.draft.steps}
        if step not in steps:
            raise _no_step(step, [*steps])
        if not steps[step].has_process:
            raise _no_component(step)
        credential = None
        if name := steps[step].credential:
            credential = await self.newest(name, f"steps.{step}.credential")
        found = await self._resolver.found(steps[step], f"steps.{step}.component")
        plan = _plan(self.reader.stores.workspace, document, found, credential)
        return Subject(plan, plan.steps[0], flow)

    async def of_component(self, reference: str, function: str, config: Mapping[str, Any]) -> Subject:
        """A component without a flow."""
        parse_reference("target.component", reference)
        step = StepSpec(COMPONENT_STEP, reference, function, dict(config))
        found = await self._resolver.found(step, "target.component")
        plan = _plan(self.reader.stores.workspace, None, found, None)
        return Subject(plan, plan.steps[0])

    async def kept(self, flow: str, step: str) -> StepSnapshot | None:
        """What a step without key keeps; None where it keeps nothing."""
        workspace = self.reader.stores.workspace
        place = subjects.snapshot_subject(workspace, flow, step, PLAIN)
        found = await self._assets.next_message(subjects.flow_stream(workspace, flow), place, 1)
        return decode_snapshot(found.data) if found is not None else None

    async def newest(self, name: str, field: str) -> CredentialRef:
        """The newest version of a credential."""
        return CredentialRef(name, (await self.credentials.newest(name, field)).version)

    async def run(self, subject: Subject, limit_s: float, **kind: Any) -> trial_pb2.TrialResult:
        """Asks the agent; `kind` is one of Trial's. Errors are the agent's, the trial's and the component's own."""
        if not 0 <= limit_s <= LONGEST_S:
            raise InvalidInput.at("timeout", limit_s, f"is not from 0 to {LONGEST_S:g} s")
        limit_s = limit_s or DEFAULT_LIMIT_S
        one = msgspec.structs.replace(subject.plan, steps=(subject.step,), entry=subject.step.name)
        trial = trial_pb2.Trial(plan_json=encode_plan(one), step=subject.step.name, **kind)
        trial.timeout.FromMilliseconds(round(limit_s * 1000))
        try:
            return await self.observer.run_trial(trial, START_S + limit_s)
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, "the agent") from None


def with_config(subject: Subject, config: Mapping[str, Any]) -> Subject:
    """The same with another configuration."""
    step = msgspec.structs.replace(subject.step, config=dict(config))
    return Subject(subject.plan, step, subject.flow, subject.live)


def with_credential(subject: Subject, credential: CredentialRef) -> Subject:
    """The same with another credential."""
    step = msgspec.structs.replace(subject.step, credential=credential)
    return Subject(subject.plan, step, subject.flow, subject.live)


def _plan(
    workspace: str, document: FlowDocument | None, found: Found, credential: CredentialRef | None
) -> DeploymentPlan:
    """A plan of one step, of a deployment that is only thought of (number 0)."""
    spec, version = found.step, headrace.__version__
    component = found.revision.manifest.component or parse_reference("component", spec.component).component
    step = StepPlan(
        name=spec.name,
        kind=kind_of(found.function),
        function=found.function.name,
        pin=PinPlan(component, found.revision.number, found.revision.digest, INTERPRETER, version, version),
        config=spec.config,
        receivers=spec.to,
        prefetch=1,
        timeout_s=spec.timeout_s,
        retry=spec.retry,
        credential=credential,
    )
    return DeploymentPlan(
        workspace=workspace,
        flow=document.flow if document is not None else "",
        flow_type=document.flow_type if document is not None else "realtime",
        deployment=0,
        version=0,
        entry=step.name,
        steps=(step,),
        max_waiting=1,
        reply_timeout_s=0.0,
        parking_epoch=0,
    )


def _step_in(plan: DeploymentPlan, name: str) -> StepPlan:
    if plan.mesh_trigger is not None and plan.mesh_trigger.name == name:
        raise _no_component(name)
    try:
        return plan.step(name)
    except KeyError:
        raise _no_step(name, [step.name for step in plan.steps]) from None


def _no_step(name: str, known: list[str]) -> NotFound:
    return NotFound(
        f"there is no step {name!r}; the flow has {', '.join(known)}", reason="STEP_NOT_FOUND", next_step="Name one"
    )


def _no_component(name: str) -> WrongState:
    return WrongState(
        f"step {name!r} has no component: it runs no code", reason="NO_COMPONENT", next_step="Name another step"
    )
