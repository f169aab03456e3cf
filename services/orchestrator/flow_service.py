"""What a person's verbs do: validate, decide by compare-and-set, wake the loop. Conversion is in `rpc`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.model import bucket_names, subjects
from headrace.model.errors import AlreadyExists, Conflict, InvalidInput, NotFound, WrongState
from headrace.model.flow_graph import check_flow
from headrace.model.flow_spec import FlowSpec
from headrace.model.names import check_name
from headrace.wire.step_checks import listens
from services.orchestrator.caller import current_caller
from services.orchestrator.domain import flow_verbs
from services.orchestrator.domain.cancellation import cancel
from services.orchestrator.domain.documents import (
    FlowDocument,
    OperationDocument,
    OperationIntent,
    change,
    encode,
    flow_key,
    marked,
    operation_of,
    version_key,
)
from services.orchestrator.domain.draft_mask import masked
from services.orchestrator.domain.flow_states import FlowState, wrong_state
from services.orchestrator.domain.history import noted
from services.orchestrator.domain.tick_plan import tick_key
from services.orchestrator.history_log import HistoryLog
from services.orchestrator.reconcile_loop import FlowLoops
from services.orchestrator.resolution import Resolver
from services.orchestrator.snapshot_reader import SnapshotReader
from services.orchestrator.stores import CAS_PAUSES_S, Stores, keeps_changing
from services.orchestrator.verb_call import PLAIN_CALL, VerbCall
from services.orchestrator.verb_queue import VerbQueue
from services.orchestrator.wall_clock import WallClock

START_LIMIT_S = 120.0
STOP_LIMIT_S = 60.0
LONGEST_LIMIT_S = 24 * 3600.0
# A verb waits this long for an operation that is as good as over.
SETTLE_LIMIT_S = 2.0
MAX_REQUEST_ID = 200


@dataclass
class FlowService:
    """All verbs of flows."""

    stores: Stores
    assets: JetStreamAssets
    resolver: Resolver
    reader: SnapshotReader
    loops: FlowLoops
    clock: WallClock
    turns: VerbQueue = field(init=False)

    def __post_init__(self) -> None:
        self.turns = VerbQueue(self.stores, self.loops)

    async def create(self, name: str, spec: FlowSpec, *, validate_only: bool, mark: str = "") -> FlowDocument:
        """AlreadyExists where the name is taken, unless it is by the call with this mark."""
        check_name("flow_id", name)
        check_flow(spec)
        document = FlowDocument(name, spec.type, self.clock.now(), draft=spec)
        if (present := await self.stores.flow(name)) is not None:
            if mark and mark in present[0].requests:
                return present[0]
            raise self._taken(name)
        if validate_only:
            return document
        if (before := await self.stores.deleted_flow(name)) is not None:
            document = change(
                document,
                next_deployment=before.next_deployment,
                parking_epoch=before.parking_epoch,
                assets_generation=before.assets_generation,
                history_next=before.history_next,
                history=before.history,
                requests=before.requests,
            )
        document = marked(change(document, leader_epoch=self.reader.epoch()), mark)
        document = noted(None, document, current_caller(), self.clock.now())
        try:
            await self.stores.flows.create(flow_key(name), encode(document))
        except Conflict as error:
            raise self._taken(name) from error
        self.loops.wake(name)
        return document

    @staticmethod
    def _taken(name: str) -> AlreadyExists:
        return AlreadyExists(
            f"there is a flow {name!r} already", next_step=f"Change its draft: headrace flow apply FILE (flows/{name})"
        )

    async def update_draft(
        self,
        name: str,
        spec: FlowSpec,
        etag: str,
        *,
        validate_only: bool,
        fields: frozenset[str] = frozenset(),
        mark: str = "",
    ) -> FlowDocument:
        """With `fields` only those of the draft (of the newest version, where there is none) become the spec's."""

        async def edit(document: FlowDocument) -> FlowDocument:
            flow_verbs.check_etag(document, etag)
            wanted = masked(await self._masked(document), spec, fields) if fields else spec
            check_flow(wanted)
            return flow_verbs.set_draft(document, wanted)

        if not fields:
            check_flow(spec)
        if validate_only:
            return await edit((await self.stores.existing_flow(name))[0])
        return await self.stores.change_flow(name, edit, mark=mark)

    async def _masked(self, document: FlowDocument) -> FlowSpec:
        """What an update of some fields begins with."""
        if document.draft is not None:
            return document.draft
        return (await self.reader.version(document.flow, flow_verbs.pick_version(document, 0))).spec

    async def delete(self, name: str, etag: str, mark: str = "") -> None:
        """Deletes a stopped flow: its stream (refused while messages wait), versions, pins, route."""
        if mark and await self._was_deleted_by(name, mark):
            return
        await self.settled(name)
        for pause_s in CAS_PAUSES_S:
            document, revision = await self.stores.existing_flow(name)
            flow_verbs.check_etag(document, etag)
            flow_verbs.check_idle(document, "delete")
            await self._check_empty(document)
            route_revision = (await self.stores.route(name))[1]
            await self.stores.remember_deleted(document, mark)
            try:
                await self.stores.flows.delete(flow_key(name), revision)
            except Conflict:  # its history was just written down
                await asyncio.sleep(pause_s)
                continue
            break
        else:
            raise keeps_changing(f"flow {name!r}")
        stream = subjects.flow_stream(self.stores.workspace, name)
        await self.assets.delete_stream(stream)
        await self.assets.delete_stream(subjects.dead_letter_stream(self.stores.workspace, name))
        await self.assets.delete_stream(subjects.stimulus_stream(self.stores.workspace, name))
        for version in range(1, document.latest_version + 1):
            await self.stores.unpin(name, f"v{version}")
            await self.stores.flows.delete(version_key(name, version))
        for number in range(1, document.next_deployment):
            await self.stores.deployments.delete(bucket_names.state_key(name, number))
            await self.stores.deployments.delete(bucket_names.plan_key(name, number))
            await self.stores.deployments.delete(bucket_names.hooks_key(name, number))
        await self.stores.deployments.delete(bucket_names.sampling_key(name))
        await self.stores.flows.delete(tick_key(name))
        if route_revision:
            with contextlib.suppress(Conflict):  # it is of a flow that was made since
                await self.stores.routes.delete(name, route_revision)
        await HistoryLog(self.assets, self.stores.workspace).record_deleted(self.stores)
        self.reader.forget(name)
        self.loops.wake(name)

    async def _was_deleted_by(self, name: str, mark: str) -> bool:
        """Whether the call with this mark deleted the flow; one that was made since carries its marks."""
        present, before = await self.stores.flow(name), await self.stores.deleted_flow(name)
        if present is not None:
            return mark in present[0].requests
        return before is not None and mark in before.requests

    async def _check_empty(self, document: FlowDocument) -> None:
        """WrongState while the flow keeps messages or dead letters."""
        name = document.flow
        stream = subjects.flow_stream(self.stores.workspace, name)
        everything = subjects.all_data(self.stores.workspace, name)
        info = await self.assets.stream_info(stream, everything) if document.has_stream else None
        waiting = sum((info["state"].get("subjects") or {}).values()) if info is not None else 0
        if waiting:
            raise WrongState(
                f"flow {name!r} still keeps {waiting} messages",
                reason="MESSAGES_WAIT",
                next_step=f"Start it to work them off, or drop them: headrace flow stop {name} --drop --yes",
            )
        letters = await self.reader.letters(document)
        if letters is not None and letters.kept:
            raise WrongState(
                f"flow {name!r} still keeps {letters.kept} dead letters",
                reason="DEAD_LETTERS_KEPT",
                next_step=f"Replay them, or delete them: headrace dead-letters discard {name} --all --yes",
            )

    async def start(self, name: str, version: int, timeout_s: float, call: VerbCall = PLAIN_CALL) -> OperationDocument:
        async def edit(document: FlowDocument, intent: OperationIntent) -> FlowDocument:
            if document.state != FlowState.STOPPED:
                raise wrong_state(name, document.state, "start")
            number = flow_verbs.pick_version(document, version)
            spec = (await self.reader.version(name, number)).spec
            changed, _ = flow_verbs.begin_start(document, number, spec, intent)
            return change(changed, listens=listens(await self.resolver.check(spec)))

        limit = limit_of("timeout", timeout_s, START_LIMIT_S)
        return await self.begin(name, "start", limit, edit, call)

    async def stop(self, name: str, mode: str, timeout_s: float, call: VerbCall = PLAIN_CALL) -> OperationDocument:
        async def edit(document: FlowDocument, intent: OperationIntent) -> FlowDocument:
            return flow_verbs.begin_stop(document, mode, intent)[0]

        limit = limit_of("timeout", timeout_s, STOP_LIMIT_S)
        return await self.begin(name, "stop", limit, edit, call, overtakes=True)

    async def begin(
        self,
        name: str,
        verb: str,
        limit_s: float,
        edit: Callable[[FlowDocument, OperationIntent], Awaitable[FlowDocument]],
        call: VerbCall,
        *,
        overtakes: bool = False,
    ) -> OperationDocument:
        """Begins an operation by one compare-and-set of the flow document, or answers the one that the same
        request id began. `edit` decides; it may be called again when somebody else was faster.

        With `wait_s` it waits so long, in order of arrival, for the operation that is at work. With `validate_only`
        it answers what would be begun, as an operation without an id."""
        if call.wait_s > 0 and not call.validate_only:
            known = (await self._intent(name, verb, call.request_id, limit_s))[1]
            if known is not None:
                return known
            async with self.turns.turn(name, verb, call.wait_s):
                now = VerbCall(call.request_id, call.etag)
                return await self.begin(name, verb, limit_s, edit, now, overtakes=overtakes)
        intent, known = await self._intent(name, verb, call.request_id, limit_s)
        if known is not None and not call.validate_only:
            return known
        if not overtakes:
            await self.settled(name)

        async def decide(document: FlowDocument) -> FlowDocument:
            if document.operation is not None and document.operation.id == intent.id:
                return document
            flow_verbs.check_etag(document, call.etag)
            return await edit(document, intent)

        if call.validate_only:
            return would_begin(await decide((await self.stores.existing_flow(name))[0]), intent)
        try:
            document = await self.stores.change_flow(name, decide)
        except Conflict:
            # Perhaps it lost against a call under the same request id.
            document, _ = await self.stores.existing_flow(name)
            if document.operation is None or document.operation.id != intent.id:
                known = (await self._intent(name, verb, call.request_id, limit_s))[1]
                if known is None:
                    raise
                return known
        return await self._decided(name, document, intent)

    async def _intent(
        self, name: str, verb: str, request_id: str, limit_s: float
    ) -> tuple[OperationIntent, OperationDocument | None]:
        """The intent, and the operation that this request id began before, if it did."""
        if len(request_id) > MAX_REQUEST_ID:
            raise InvalidInput.at("request_id", request_id, f"is longer than {MAX_REQUEST_ID} characters")
        now = self.clock.now()
        chosen = hashlib.sha256(f"{name}\n{verb}\n{request_id}".encode()).hexdigest()[:16] if request_id else ""
        identifier = f"{verb}-{name}-{chosen or uuid.uuid4().hex[:16]}"
        found = await self.stores.operation(identifier) if request_id else None
        intent = OperationIntent(identifier, verb, created_at=now, deadline=now + limit_s)
        return intent, found[0] if found else None

    async def settled(self, name: str) -> None:
        """Waits a moment where the flow's operation is over but not cleared yet."""
        with self.loops.watching(name) as changed, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_LIMIT_S):
                while True:
                    changed.clear()
                    document, _ = await self.stores.existing_flow(name)
                    if document.operation is None:
                        return
                    found = await self.stores.operation(document.operation.id)
                    ending = document.operation.verb == "publish" and not document.operation.deployment
                    if not ending and not (found and found[0].done):
                        return  # it is really being worked on
                    self.loops.wake(name)
                    await changed.wait()

    async def _decided(self, name: str, document: FlowDocument, intent: OperationIntent) -> OperationDocument:
        begun = document.operation if document.operation and document.operation.id == intent.id else intent
        operation = operation_of(name, begun)
        # The flow document says the same: whoever writes it first, it is there when the caller asks for it.
        await self.stores.begin_operation(operation)
        self.loops.wake(name)
        return operation

    async def cancel(self, identifier: str) -> None:
        """Undoes an operation that still prepares; WrongState naming why, where it cannot be undone."""
        found = await self.operation(identifier)
        if found.done:
            return

        async def edit(document: FlowDocument) -> FlowDocument:
            return cancel(document, identifier)

        await self.stores.change_flow(found.flow, edit)
        self.loops.wake(found.flow)

    async def operation(self, identifier: str) -> OperationDocument:
        found = await self.stores.operation(identifier)
        if found is not None:
            return found[0]
        for document in await self.stores.all_flows():
            for intent in [*document.overtaken, *([document.operation] if document.operation else [])]:
                if intent.id == identifier:
                    return operation_of(document.flow, intent)
        raise NotFound(f"there is no operation {identifier!r}", reason="OPERATION_NOT_FOUND")


def would_begin(document: FlowDocument, intent: OperationIntent) -> OperationDocument:
    """An operation that nobody began: what it would have been."""
    begun = operation_of(document.flow, document.operation or intent)
    return msgspec.structs.replace(begun, id="", done=True, message="valid: nothing was written")


def limit_of(field: str, value: float, default: float) -> float:
    """A caller's limit in seconds, the default where none is given."""
    if value == 0:
        return default
    if not 0 < value <= LONGEST_LIMIT_S:
        raise InvalidInput.at(field, value, f"is not between 0 and {LONGEST_LIMIT_S:g} s")
    return value
