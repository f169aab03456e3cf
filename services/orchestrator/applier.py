"""Does what the planner asked for. Each action can be repeated; a failed one is planned again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.api.agent.v1 import agent_pb2
from headrace.edge.jetstream_assets import PAUSED_UNTIL, JetStreamAssets
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase
from headrace.model.errors import Conflict
from headrace.model.ingress_owner import IngressOwner
from services.orchestrator.caller import ORCHESTRATOR
from services.orchestrator.domain import actions as do
from services.orchestrator.domain.documents import kept_for, without_deployment
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.history import noted
from services.orchestrator.domain.listener_handover import GAP
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.history_log import HistoryLog
from services.orchestrator.ingress_proof import IngressProof
from services.orchestrator.instance_observer import InstanceObserver
from services.orchestrator.letter_work import LetterWorker
from services.orchestrator.message_settler import MessageSettler
from services.orchestrator.resolution import Resolver
from services.orchestrator.snapshot_reader import SnapshotReader
from services.orchestrator.stores import Stores
from services.orchestrator.stray_mover import StrayMover
from services.orchestrator.stuck_redelivery import StuckRedelivery

log = get_logger(__name__)


class Applier:
    """One for all flows; it keeps nothing but how long the assets of a start took."""

    def __init__(
        self,
        stores: Stores,
        assets: JetStreamAssets,
        observer: InstanceObserver,
        resolver: Resolver,
        reader: SnapshotReader,
        letters: LetterWorker | None = None,
    ) -> None:
        """Without `letters` nothing is done about dead letters that a killed orchestrator worked on."""
        self._stores = stores
        self._assets = assets
        self._observer = observer
        self._resolver = resolver
        self._reader = reader
        self._letters = letters
        self._settler = MessageSettler(stores, assets)
        self._strays = StrayMover(stores, assets)
        self._stuck = StuckRedelivery(stores, assets)
        self._proof = IngressProof(assets, stores.workspace)
        self._history = HistoryLog(assets, stores.workspace)
        self._asset_ms: dict[str, float] = {}

    async def apply(self, snapshot: Snapshot, action: do.Action) -> None:
        """Conflict means: look again at once. Other errors: look again after a pause."""
        match action:
            case do.UpdateFlow():
                await self._update_flow(snapshot, action)
            case do.SetState():
                await self._set_state(snapshot, action)
            case do.WriteOperation():
                await self._stores.write_operation(action.operation)
            case do.WriteRoute():
                await self._stores.write_route(action.route, snapshot.route_revision)
            case do.Resolve():
                version = await self._reader.version(snapshot.flow.flow, action.version)
                await self._resolver.resolve(snapshot.flow, action.deployment, version.spec, action.version)
            case do.StartInstance():
                await self._start_instance(snapshot, action)
            case do.StopInstance():
                await self._observer.stop_instance(action.name, action.generation)
            case do.CallInstance():
                await self._observer.call(action)
            case do.SettleMessages():
                await self._settler.settle(snapshot, action.deployment)
            case do.MoveStrays():
                await self._strays.move(snapshot, action)
            case do.RedeliverStuck():
                self._reader.begin_suspicion_anew(snapshot.flow.flow, action.durable)
                await self._stuck.redeliver(snapshot, action)
            case do.FinishLetters():
                if self._letters is not None:
                    await self._letters.finish(snapshot.flow.flow)
            case do.EnsureLetters() | do.EnsureStimuli():
                await self._assets.ensure_stream(dict(action.config))
            case do.RecordHistory():
                await self._record_history(snapshot)
            case do.Forget():
                await self._forget(snapshot, action)
            case _:
                await self._apply_asset(snapshot, action)

    async def _apply_asset(self, snapshot: Snapshot, action: do.Action) -> None:
        flow = snapshot.flow.flow
        stream = subjects.flow_stream(snapshot.workspace, flow)
        started = time.monotonic()
        match action:
            case do.EnsureStream():
                await self._ensure_stream(snapshot, action)
            case do.EnsureConsumer():
                await self._ensure_consumer(stream, action)
            case do.PauseConsumer():
                await self._assets.pause_consumer(stream, action.name, paused=action.paused)
            case do.DeleteConsumer():
                await self._assets.delete_consumer(stream, action.name)
            case do.ConfirmIngress():
                await self._confirm_ingress(snapshot, action)
            case do.PurgeBarriers():
                place = subjects.data_subject(snapshot.workspace, flow, action.owner, subjects.BARRIER_STEP)
                await self._assets.purge(stream, place)
            case do.PurgeCursors():
                await self._assets.purge(stream, subjects.owner_filter(snapshot.workspace, flow, action.owner))
            case do.PurgeOwners():
                await self._assets.purge(stream, subjects.ingress_owner_filter(snapshot.workspace, flow))
            case do.DropMessages():
                await self._drop(snapshot, action)
            case _:
                raise AssertionError(f"unknown action {action!r}")
        if snapshot.flow.state == FlowState.STARTING and snapshot.flow.ingress.startswith("p"):
            self._asset_ms[flow] = self._asset_ms.get(flow, 0.0) + (time.monotonic() - started) * 1000

    # Documents.

    async def _update_flow(self, snapshot: Snapshot, action: do.UpdateFlow) -> None:
        before, after = snapshot.flow, action.document
        took_over = after.active if after.active and after.active != before.active else 0
        if took_over and before.operation is not None:
            await self._note_start_times(snapshot, took_over, before.operation.created_at)
        after = noted(before, after, ORCHESTRATOR, snapshot.now, snapshot.deployments)
        await self._stores.write_flow(after, snapshot.flow_revision)
        if after.ingress_repairs > before.ingress_repairs:
            log.error("stale ingress switch, it is put right", flow=after.flow, owner=after.ingress)
        if after.state != before.state or after.ingress != before.ingress:
            log.info(action.why, flow=after.flow, state=after.state, ingress=after.ingress, was=before.state)

    async def _record_history(self, snapshot: Snapshot) -> None:
        await self._history.record(*snapshot.flow.history)
        await self._stores.write_flow(msgspec.structs.replace(snapshot.flow, history=()), snapshot.flow_revision)

    async def _note_start_times(self, snapshot: Snapshot, deployment: int, began: float) -> None:
        """Bookkeeping, not a decision: the generation stays."""
        view = snapshot.deployments[deployment]
        assert view.state is not None
        times = {
            **view.state.start_ms,
            "activate": _ms(snapshot.now - view.state.changed_at),
            "total": _ms(snapshot.now - began),
        }
        if snapshot.flow.listening_ended_at:
            times[GAP] = _ms(snapshot.now - snapshot.flow.listening_ended_at)
        state = msgspec.structs.replace(view.state, start_ms=times)
        await self._stores.write_state(snapshot.flow.flow, deployment, state, view.state_revision)

    async def _set_state(self, snapshot: Snapshot, action: do.SetState) -> None:
        view = snapshot.deployments[action.deployment]
        state = action.state
        if state.phase == DeploymentPhase.WARM and view.state is not None:
            times = {**state.start_ms, "prepare": _ms(snapshot.now - view.state.created_at)}
            if snapshot.flow.flow in self._asset_ms:
                times["assets"] = round(self._asset_ms.pop(snapshot.flow.flow), 1)
            state = msgspec.structs.replace(state, start_ms=times)
        await self._stores.write_state(snapshot.flow.flow, action.deployment, state, view.state_revision)
        log.info(
            "deployment phase",
            flow=snapshot.flow.flow,
            deployment=action.deployment,
            phase=state.phase,
            generation=state.generation,
            why=action.why,
            cause=state.cause,
        )

    async def _forget(self, snapshot: Snapshot, action: do.Forget) -> None:
        flow, number = snapshot.flow.flow, action.deployment
        plan = snapshot.deployments[number].plan
        if action.keep_for_version and plan is not None:
            kept = [await self._reader.plan(flow, other) for other in kept_for(snapshot.flow, action.version)]
            digests = {step.pin.digest for item in kept if item is not None for step in item.steps}
            holder = f"v{action.version}"
            await self._stores.pin(digests, flow, holder, f"flows/{flow}/versions/{action.version}")
            await self._stores.unpin(flow, holder, keep=frozenset(digests))
        await self._stores.unpin(flow, f"d{number}")
        if self._resolver.credentials is not None and (plan is None or any(step.credential for step in plan.steps)):
            await self._resolver.credentials.release(flow, number)
        after = noted(
            snapshot.flow,
            without_deployment(snapshot.flow, number),
            ORCHESTRATOR,
            snapshot.now,
            snapshot.deployments,
        )
        await self._stores.write_flow(after, snapshot.flow_revision)

    # Assets.

    async def _ensure_stream(self, snapshot: Snapshot, action: do.EnsureStream) -> None:
        if not (action.create and not snapshot.flow.live):
            log.info("stream set", flow=snapshot.flow.flow, why=action.why, ingress=snapshot.flow.ingress)
        config = dict(action.config)
        if action.create:
            await self._assets.create_stream(config)
        else:
            await self._assets.ensure_stream(config)

    async def _ensure_consumer(self, stream: str, action: do.EnsureConsumer) -> None:
        name = str(action.config["durable_name"])
        if action.recreate:
            log.warning("consumer has other filters than decided; it is made anew", consumer=name)
            await self._assets.delete_consumer(stream, name)
        config: dict[str, Any] = dict(action.config)
        if action.paused:
            config["pause_until"] = PAUSED_UNTIL
        await self._assets.ensure_consumer(stream, config)

    async def _confirm_ingress(self, snapshot: Snapshot, action: do.ConfirmIngress) -> None:
        flow, sequence = snapshot.flow, 0
        if snapshot.fenced:
            sequence = await self._proof.by_writing(flow.flow, IngressOwner(action.owner, flow.assets_generation))
        else:
            await self._proof.by_barrier(flow.flow, action.owner)
        await self._stores.write_flow(
            msgspec.structs.replace(flow, ingress_confirmed=True, ingress_sequence=sequence), snapshot.flow_revision
        )

    async def _drop(self, snapshot: Snapshot, action: do.DropMessages) -> None:
        """First counted, then purged: consumers are gone and no owner is listed, so the count is final. Only what
        had been stored when this was decided goes: a purge that comes late takes nothing of a later start."""
        found = await self._stores.operation(action.operation) if action.operation else None
        if found is not None and not found[0].done:
            counted = msgspec.structs.replace(found[0], dropped=max(found[0].dropped, action.count))
            await self._stores.write_operation(counted)
        if action.through > snapshot.flow.dropped_through:  # else it was counted, and the kill came before the purge
            total = msgspec.structs.replace(
                snapshot.flow, dropped=snapshot.flow.dropped + action.count, dropped_through=action.through
            )
            await self._stores.write_flow(total, snapshot.flow_revision)
        stream = subjects.flow_stream(snapshot.workspace, snapshot.flow.flow)
        purged = await self._assets.purge(stream, through=action.through)
        log.warning("messages dropped", flow=snapshot.flow.flow, counted=action.count, purged=purged)

    async def _start_instance(self, snapshot: Snapshot, action: do.StartInstance) -> None:
        plan = snapshot.deployments[action.instance.deployment].plan
        if plan is None:
            raise Conflict("the plan is not there yet")
        spec = agent_pb2.InstanceSpec(
            name=action.instance.name,
            workspace=snapshot.workspace,
            flow=snapshot.flow.flow,
            deployment=action.instance.deployment,
            step=action.instance.step,
            replica=action.instance.replica,
            plan_digest=self._stores.digest_of(plan),
        )
        await self._observer.start_instance(spec, action.generation)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def touches(action: do.Action) -> str:
    """What an action touches: while one of a key is being done, no second one of it is begun."""
    match action:
        case do.UpdateFlow() | do.ConfirmIngress() | do.RecordHistory() | do.MoveStrays() | do.RedeliverStuck():
            return "flow"
        case (
            do.Forget(deployment=number)
            | do.SetState(deployment=number)
            | do.Resolve(deployment=number)
            | do.SettleMessages(deployment=number)
        ):
            return f"deployment {number}"
        case do.WriteOperation(operation=operation):
            return f"operation {operation.id}"
        case do.WriteRoute():
            return "route"
        case do.EnsureLetters() | do.FinishLetters():
            return "letters"
        case do.EnsureStimuli():
            return "stimuli"
        case do.EnsureStream() | do.PurgeBarriers() | do.PurgeCursors() | do.PurgeOwners() | do.DropMessages():
            return "stream"
        case do.EnsureConsumer(config=config):
            return f"consumer {_text(config, 'durable_name')}"
        case do.PauseConsumer(name=name) | do.DeleteConsumer(name=name):
            return f"consumer {name}"
        case do.StartInstance(instance=instance):
            return f"instance {instance.name}"
        case do.StopInstance(name=name) | do.CallInstance(name=name):
            return f"instance {name}"
    raise AssertionError(f"unknown action {action!r}")


def _text(mapping: Mapping[str, object], key: str) -> str:
    return str(mapping[key])
