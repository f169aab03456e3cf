"""`refresh-credentials`: the newest version for steps that run, without a restart: all instances of a step or none."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import grpc
import msgspec

from headrace.client.errors import error_of_call
from headrace.edge.structured_log import get_logger
from headrace.model.credential import CredentialRef
from headrace.model.deployment import DeploymentPhase, DeploymentPlan, DeploymentState
from headrace.model.errors import Conflict, HeadraceError, NotFound, Unavailable, WrongState
from services.orchestrator.credential_store import CredentialStore
from services.orchestrator.domain.documents import FlowDocument, change
from services.orchestrator.instance_observer import InstanceObserver
from services.orchestrator.snapshot_reader import SnapshotReader
from services.orchestrator.stores import CAS_PAUSES_S, keeps_changing

log = get_logger(__name__)

OVER = (DeploymentPhase.RETIRED, DeploymentPhase.FAILED)
INSTANCE_LIMIT_S = 40.0
MAX_DETAIL = 400


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A step of a deployment, what it had and what it has."""

    deployment: int
    step: str
    before: CredentialRef
    after: CredentialRef
    instances: int


@dataclass(frozen=True, slots=True)
class _Work:
    plan: DeploymentPlan
    state: DeploymentState
    step: str
    before: CredentialRef


class CredentialRefresher:
    """One for all flows. Two at once on one flow are done one after the other."""

    def __init__(self, credentials: CredentialStore, reader: SnapshotReader, observer: InstanceObserver) -> None:
        self._credentials = credentials
        self._reader = reader
        self._stores = reader.stores
        self._observer = observer
        self._working: dict[str, asyncio.Lock] = {}

    async def refresh(self, flow: str, only: str) -> list[Refreshed]:
        """What uses a newer version now. WrongState CREDENTIAL_REFUSED, with the component's words, where one refused:
        then every instance has what it had."""
        async with self._working.setdefault(flow, asyncio.Lock()):
            document, _ = await self._stores.existing_flow(flow)
            work = await self._work(document, only)
            done: list[Refreshed] = []
            try:
                for item in work:
                    refreshed = await self._step(flow, item)
                    done += [refreshed] if refreshed is not None else []
            except HeadraceError as error:
                await self._note(flow, f"{_told(done)}{'; ' if done else ''}refused: {error.message}")
                raise
            if done:
                await self._note(flow, _told(done))
            return done

    async def _work(self, document: FlowDocument, only: str) -> list[_Work]:
        """Steps of deployments at work that name a credential."""
        flow, work, steps = document.flow, list[_Work](), set[str]()
        for number in document.live:
            plan, found = await self._reader.plan(flow, number), await self._stores.state(flow, number)
            if plan is None or found is None or found[0].phase in OVER:
                continue
            for step in plan.steps:
                steps.add(step.name)
                before = found[0].credential_of(step)
                if before is not None and only in ("", step.name):
                    work.append(_Work(plan, found[0], step.name, before))
        if only and steps and only not in steps:
            raise NotFound(
                f"flow {flow!r} has no step {only!r}; it has {', '.join(sorted(steps))}", reason="STEP_NOT_FOUND"
            )
        if not work:
            what = f"step {only!r} of flow {flow!r}" if only and steps else f"flow {flow!r}"
            why = "names no credential" if steps else "does not run: its next start takes the newest credentials"
            raise WrongState(
                f"{what} {why}",
                reason="NO_CREDENTIAL" if steps else "NOT_RUNNING",
                next_step=f"See: headrace flow show {flow}" if steps else f"Start it: headrace flow start {flow}",
            )
        return work

    async def _step(self, flow: str, work: _Work) -> Refreshed | None:
        number, before = work.plan.deployment, work.before
        field = f"steps.{work.step}.credential"
        head = await self._credentials.newest(before.name, field)
        if head.version == before.version:
            return None
        after = await self._credentials.freeze(before.name, flow, number, field)
        instances = self._instances(flow, number, work.step)
        generation = work.state.generation
        outcomes = await asyncio.gather(
            *(self._try(name, after.version, generation) for name in instances), return_exceptions=True
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if refused:
            await asyncio.gather(
                *(self._try(name, before.version, generation) for name in instances), return_exceptions=True
            )
            raise self._refusal(flow, work, after, refused[0])
        await self._write(flow, number, work.step, after)
        return Refreshed(number, work.step, before, after, len(instances))

    def _instances(self, flow: str, deployment: int, step: str) -> list[str]:
        if not self._observer.agent_known:
            raise Unavailable(
                "which instances run is not known yet", reason="AGENT_UNREACHABLE", next_step="Try again in a moment"
            )
        views, _ = self._observer.views_of(flow)
        return [view.name for view in views.values() if view.up and (view.deployment, view.step) == (deployment, step)]

    async def _try(self, instance: str, version: int, generation: int) -> None:
        try:
            await self._observer.refresh_credential(instance, version, generation, INSTANCE_LIMIT_S)
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, instance) from error

    def _refusal(self, flow: str, work: _Work, after: CredentialRef, error: BaseException) -> HeadraceError:
        if not isinstance(error, HeadraceError):
            raise error
        kind = Unavailable if isinstance(error, Unavailable) else WrongState
        return kind(
            f"step {work.step!r} (d{work.plan.deployment}) keeps version {work.before.version} of credential "
            f"{after.name!r}, version {after.version} was not accepted: {error.message}",
            reason=error.reason,
            next_step=error.next_step.replace("FLOW", flow)
            or f"Correct it: headrace credential update {after.name} --from FILE, then refresh again",
            metadata={"flow": flow, "step": work.step, "credential": after.name},
        )

    async def _write(self, flow: str, number: int, step: str, used: CredentialRef) -> None:
        """Into the deployment's state: from here on it counts, whoever starts anew."""
        for pause_s in CAS_PAUSES_S:
            found = await self._stores.state(flow, number)
            if found is None:
                raise Conflict(f"deployment {number} of flow {flow!r} is gone")
            state, revision = found
            state = msgspec.structs.replace(
                state, credentials={**state.credentials, step: used.version}, generation=state.generation + 1
            )
            try:
                await self._stores.write_state(flow, number, state, revision)
            except Conflict:
                await asyncio.sleep(pause_s)
                continue
            log.info("credential refreshed", flow=flow, deployment=number, step=step, version=used.version)
            return
        raise keeps_changing(f"deployment {number} of flow {flow!r}")

    async def _note(self, flow: str, what: str) -> None:
        """For the history."""

        async def edit(document: FlowDocument) -> FlowDocument:
            return change(document, refreshes=document.refreshes + 1, refreshed=what[:MAX_DETAIL])

        await self._stores.change_flow(flow, edit)


def _told(done: list[Refreshed]) -> str:
    return ", ".join(
        f"{item.step} (d{item.deployment}): {item.after.name} version {item.before.version} -> {item.after.version}"
        for item in done
    )
