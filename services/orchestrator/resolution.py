"""From a flow's references to the pin set of one deployment: asked of the registry, checked, written once."""

from __future__ import annotations

import asyncio
import platform
import sys
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import grpc
import msgspec
from grpc_status import rpc_status

import headrace
from headrace.api.registry.v1 import registry_pb2, registry_pb2_grpc
from headrace.model.credential import CredentialRef
from headrace.model.deployment import DeploymentPhase, DeploymentPlan, DeploymentState, MeshTrigger, PinPlan, StepPlan
from headrace.model.error_steps import error_steps
from headrace.model.errors import HeadraceError, InvalidInput, Unavailable
from headrace.model.flow_graph import check_flow
from headrace.model.flow_spec import DEAD_LETTER, FlowSpec, StepSpec
from headrace.model.names import parse_reference
from headrace.wire.step_checks import Found, choose_function, flow_problems, kind_of, merged, problems_of, unresolved
from services.orchestrator.credential_store import CredentialStore
from services.orchestrator.domain.documents import FlowDocument, current_epoch, parks
from services.orchestrator.domain.leadership import generation_of
from services.orchestrator.domain.slot_handover import first_owners
from services.orchestrator.stores import Stores
from services.orchestrator.wall_clock import WallClock

REGISTRY_TIMEOUT_S = 5.0
ACK_WAIT_S = 15.0
NO_CREDENTIALS: Mapping[str, CredentialRef] = MappingProxyType({})
INTERPRETER = f"{platform.python_implementation().lower()}-{sys.version.split()[0]}"


class Resolver:
    """Resolves through the registry's API; all steps at once."""

    def __init__(
        self,
        registry: grpc.aio.Channel,
        stores: Stores,
        clock: WallClock,
        ack_wait_s: float = ACK_WAIT_S,
        credentials: CredentialStore | None = None,
        group_commits: Callable[[], bool] = lambda: False,
    ) -> None:
        """Without `credentials` there are none to name."""
        self.credentials = credentials
        self._registry = registry_pb2_grpc.RegistryServiceStub(registry)
        self._stores = stores
        self._clock = clock
        self._ack_wait_s = ack_wait_s
        self._group_commits = group_commits

    async def check(self, spec: FlowSpec) -> list[Found]:
        """Graph, references, functions, kinds and config; InvalidInput with a violation per problem."""
        graph = check_flow(spec)
        answers = await asyncio.gather(
            *(self._find(index, step) for index, step in _run_by_instances(spec)), return_exceptions=True
        )
        found: list[Found] = []
        problems: list[InvalidInput] = []
        for (index, step), answer in zip(_run_by_instances(spec), answers, strict=True):
            if isinstance(answer, InvalidInput):
                problems.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found.append(answer)
                problems += problems_of(index, step, answer.function, step.name == graph.trigger)
        problems += flow_problems(spec, [item.function for item in found])
        problems += await self._credential_problems(spec)
        if problems:
            raise merged(problems)
        return found

    async def _credential_problems(self, spec: FlowSpec) -> list[InvalidInput]:
        problems: list[InvalidInput] = []
        for index, step in enumerate(spec.steps):
            try:
                if step.credential:
                    await self._store().newest(step.credential, f"steps[{index}].credential")
            except InvalidInput as problem:
                problems.append(problem)
        return problems

    async def newest_credentials(self, spec: FlowSpec) -> dict[str, CredentialRef]:
        """By step: the version that a deployment made now would get. InvalidInput where there is none."""
        found: dict[str, CredentialRef] = {}
        for index, step in enumerate(spec.steps):
            if step.credential:
                head = await self._store().newest(step.credential, f"steps[{index}].credential")
                found[step.name] = CredentialRef(step.credential, head.version)
        return found

    async def _frozen(self, spec: FlowSpec, flow: str, deployment: int) -> dict[str, CredentialRef]:
        """By step: the newest versions, marked as used by the deployment."""
        found: dict[str, CredentialRef] = {}
        for index, step in enumerate(spec.steps):
            if step.credential:
                field = f"steps[{index}].credential"
                found[step.name] = await self._store().freeze(step.credential, flow, deployment, field)
        return found

    def _store(self) -> CredentialStore:
        assert self.credentials is not None, "this orchestrator keeps no credentials"
        return self.credentials

    async def found(self, step: StepSpec, field: str) -> Found:
        """What the registry has for one step; InvalidInput at the field where there is nothing."""
        request = registry_pb2.ResolveReferenceRequest(reference=step.component)
        try:
            revision = await self._registry.ResolveReference(request, timeout=REGISTRY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _registry_error(field, step.component, error) from error
        return Found(step, revision, choose_function(0, step, revision.manifest))

    async def newest_revision(self, component: str) -> registry_pb2.Revision:
        request = registry_pb2.ResolveReferenceRequest(reference=component)
        answer: registry_pb2.Revision = await self._registry.ResolveReference(request, timeout=REGISTRY_TIMEOUT_S)
        return answer

    async def newest_number(self, component: str) -> int:
        """Number of a component's newest revision, wherever `latest` points."""
        request = registry_pb2.GetComponentRequest(name=f"components/{component}")
        try:
            answer = await self._registry.GetComponent(request, timeout=REGISTRY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _registry_error("component", component, error) from error
        return int(answer.latest_revision)

    async def resolve(self, document: FlowDocument, deployment: int, spec: FlowSpec, version: int) -> None:
        """Writes pins, then looks that every revision is still there, then plan and first state.

        A plan that is there already (whoever wrote it did not live to write the state) is kept: what was resolved
        once is not resolved again. A refusal that will not pass is written as a FAILED state, with its cause;
        Unavailable is raised, so that it is tried again.
        """
        started = time.monotonic()
        flow, generation = document.flow, generation_of(0, document.leader_epoch)
        now = self._clock.now()
        plan = await self._stores.plan(flow, deployment)
        if plan is None:
            try:
                spec = await self._with_pins(flow, spec, document.rollout.pins_of)
                found = await self._pinned(flow, deployment, spec)
                credentials = await self._frozen(spec, flow, deployment)
            except Unavailable:
                raise
            except HeadraceError as error:
                state = DeploymentState(
                    DeploymentPhase.FAILED, generation, {}, str(error), error.reason, created_at=now, changed_at=now
                )
                await self._stores.write_state(flow, deployment, state, 0)
                return
            plan = make_plan(self._stores.workspace, document, deployment, version, spec, found, credentials)
            plan = msgspec.structs.replace(plan, ack_wait_s=self._ack_wait_s, group_commits=self._group_commits())
            await self._stores.create_plan(plan)
        now = self._clock.now()
        replicas = await self._replicas(flow, spec, document.rollout.replicas_of)
        state = DeploymentState(
            DeploymentPhase.PREPARING,
            generation,
            replicas,
            created_at=now,
            changed_at=now,
            start_ms={"resolve": round((time.monotonic() - started) * 1000, 1)},
            slots=first_owners(plan, replicas, generation),
        )
        await self._stores.write_state(flow, deployment, state, 0)

    async def _pinned(self, flow: str, deployment: int, spec: FlowSpec) -> list[Found]:
        """The revisions of all steps: pinned first, and there after that."""
        found = await self.check(spec)
        digests = {item.revision.digest for item in found}
        await self._stores.pin(digests, flow, f"d{deployment}", f"flows/{flow}/deployments/{deployment}")
        places = [index for index, _ in _run_by_instances(spec)]
        await asyncio.gather(*(self._still_there(index, item) for index, item in zip(places, found, strict=True)))
        return found

    async def _with_pins(self, flow: str, spec: FlowSpec, deployment: int) -> FlowSpec:
        """The spec with the digests of a deployment in place of its references; 0: as it is."""
        if not deployment:
            return spec
        plan = await self._stores.plan(flow, deployment)
        if plan is None:
            raise InvalidInput(f"deployment {deployment} of flow {flow!r} is gone", reason="DEPLOYMENT_NOT_FOUND")
        return pinned_spec(spec, plan)

    async def _replicas(self, flow: str, spec: FlowSpec, deployment: int) -> dict[str, int]:
        """Replicas as the spec says, but as many as a deployment has for steps that it has too."""
        wanted = {step.name: step.replicas for _, step in _run_by_instances(spec)}
        state = await self._stores.state(flow, deployment) if deployment else None
        kept = state[0].replicas if state is not None else {}
        return {step: kept.get(step, count) for step, count in wanted.items()}

    async def _find(self, index: int, step: StepSpec) -> Found:
        revision = await self._ask(index, step.component)
        return Found(step, revision, choose_function(index, step, revision.manifest))

    async def _still_there(self, index: int, item: Found) -> None:
        component = item.revision.manifest.component or parse_reference("component", item.step.component).component
        await self._ask(index, f"{component}@{item.revision.digest}")

    async def _ask(self, index: int, reference: str) -> registry_pb2.Revision:
        request = registry_pb2.ResolveReferenceRequest(reference=reference)
        try:
            answer: registry_pb2.Revision = await self._registry.ResolveReference(request, timeout=REGISTRY_TIMEOUT_S)
            return answer
        except grpc.aio.AioRpcError as error:
            raise _registry_error(f"steps[{index}].component", reference, error) from error


def _run_by_instances(spec: FlowSpec) -> list[tuple[int, StepSpec]]:
    """All steps but the mesh's own trigger, with their places in the flow."""
    return [(index, step) for index, step in enumerate(spec.steps) if step.has_process]


def _registry_error(field: str, reference: str, error: grpc.aio.AioRpcError) -> HeadraceError:
    """InvalidInput where the registry refused, else Unavailable."""
    refused = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    if error.code() in refused:
        return unresolved(field, reference, _message(error))
    return Unavailable(
        f"the registry did not answer: {error.code().name} {error.details()}",
        reason="REGISTRY_UNREACHABLE",
        next_step="Try again; headrace status shows which services run",
    )


def _message(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    return str(status.message if status is not None else error.details())


def pinned_spec(spec: FlowSpec, plan: DeploymentPlan) -> FlowSpec:
    """The spec with exact digests in place of references: those that a deployment of the same version runs."""
    pins = {step.name: f"{step.pin.component}@{step.pin.digest}" for step in plan.steps}
    steps = tuple(
        msgspec.structs.replace(step, component=pins[step.name]) if step.has_process else step for step in spec.steps
    )
    return msgspec.structs.replace(spec, steps=steps)


def make_plan(
    workspace: str,
    document: FlowDocument,
    deployment: int,
    version: int,
    spec: FlowSpec,
    found: list[Found],
    credentials: Mapping[str, CredentialRef] = NO_CREDENTIALS,
) -> DeploymentPlan:
    """The immutable document of a deployment; `credentials` by step. One that is switched to while another runs has no
    parking epoch."""
    epoch = current_epoch(document) if parks(document) else 0
    handlers = error_steps(spec)
    steps = tuple(
        StepPlan(
            name=item.step.name,
            kind=kind_of(item.function),
            function=item.function.name,
            pin=PinPlan(
                component=item.revision.manifest.component
                or parse_reference("component", item.step.component).component,
                revision_number=item.revision.number,
                digest=item.revision.digest,
                interpreter=INTERPRETER,
                sdk_version=headrace.__version__,
                sidecar_version=headrace.__version__,
            ),
            config=item.step.config,
            receivers=item.step.to,
            prefetch=item.step.prefetch,
            timeout_s=item.step.timeout_s,
            retry=item.step.retry,
            exclusive=item.function.exclusive,
            every_s=item.step.every_s,
            key=item.step.key,
            slots=item.step.slot_count,
            exactly_once=item.step.exactly_once,
            rate_limit=item.step.rate_limit,
            on_error=item.step.on_error or DEAD_LETTER,
            error_step=handler.step if (handler := handlers.get(item.step.name)) else "",
            error_letter=handler.dead_letter if handler else False,
            edges=item.step.edges,
            cron=item.step.cron,
            time_zone=item.step.time_zone,
            catch_up=item.step.catch_up,
            credential=credentials.get(item.step.name),
            idle_timeout_s=item.step.idle_timeout_s,
        )
        for item in found
    )
    graph = check_flow(spec)
    return DeploymentPlan(
        workspace=workspace,
        flow=document.flow,
        flow_type=spec.type,
        deployment=deployment,
        version=version,
        entry=graph.entry,
        steps=steps,
        max_waiting=spec.max_waiting,
        reply_timeout_s=spec.reply_timeout_s,
        parking_epoch=epoch,
        rate_limit=spec.rate_limit,
        passthrough=spec.passthrough,
        history=spec.history,
        mesh_trigger=_mesh_trigger(next(step for step in spec.steps if step.name == graph.trigger)),
    )


def _mesh_trigger(trigger: StepSpec) -> MeshTrigger | None:
    if trigger.has_process:
        return None
    return MeshTrigger(trigger.name, trigger.every_s, trigger.cron, trigger.time_zone, trigger.catch_up)
