"""The KV buckets the orchestrator owns, with typed documents; every change is a compare-and-set."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from nats.aio.client import Client

from headrace.document_ports import Bucket
from headrace.edge.kv_bucket import KvBucket
from headrace.model import bucket_names
from headrace.model.deployment import (
    DeploymentPlan,
    DeploymentState,
    decode_plan,
    decode_state,
    encode_plan,
    encode_state,
    plan_digest,
)
from headrace.model.errors import Conflict, NotFound
from headrace.model.flow_hooks import HookRecord, decode_hooks
from headrace.model.route import Route, decode_route, encode_route
from services.orchestrator.caller import current_caller
from services.orchestrator.domain.documents import (
    DeletedFlow,
    FlowDocument,
    OperationDocument,
    VersionDocument,
    decode,
    deleted_flow_key,
    encode,
    flow_key,
    marked,
    operation_key,
    version_key,
)
from services.orchestrator.domain.history import noted
from services.orchestrator.domain.history_entry import HistoryEntry
from services.orchestrator.domain.tick_plan import TickCursor, tick_key

# Between tries of a compare-and-set: half a second in all.
CAS_PAUSES_S = tuple(0.002 * 2**tries for tries in range(8))


def keeps_changing(what: str) -> Conflict:
    """After the last try."""
    return Conflict(f"{what} keeps changing", reason="BUSY", next_step="Try again")


T = TypeVar("T", bound=msgspec.Struct)


@dataclass
class Stores:
    """All buckets of one workspace."""

    workspace: str
    flows: Bucket
    deployments: Bucket
    routes: Bucket
    pins: Bucket
    now: Callable[[], float] = time.time
    _plan_digests: dict[tuple[str, int], str] = field(default_factory=dict)

    @classmethod
    async def open(cls, connection: Client, workspace: str, guard: Callable[[], None] = lambda: None) -> Stores:
        """`guard` is called before each write, and raises where this process may not write."""
        names = (
            bucket_names.flow_bucket(workspace),
            bucket_names.deployment_bucket(workspace),
            bucket_names.route_bucket(workspace),
            bucket_names.pin_bucket(workspace),
        )
        buckets = await asyncio.gather(*(KvBucket.open(connection, name, guard=guard) for name in names))
        return cls(workspace, buckets[0], buckets[1], buckets[2], buckets[3])

    async def hooks(self, flow: str, deployment: int) -> HookRecord | None:
        """What its sidecar noted of a deployment's startup and shutdown hooks; None where it has none."""
        entry = await self.deployments.get(bucket_names.hooks_key(flow, deployment))
        return decode_hooks(entry.value) if entry is not None and entry.value else None

    # Flows and versions.

    async def flow(self, name: str) -> tuple[FlowDocument, int] | None:
        entry = await self.flows.get(flow_key(name))
        return (decode(entry.value or b"", FlowDocument), entry.revision) if entry else None

    async def existing_flow(self, name: str) -> tuple[FlowDocument, int]:
        """NotFound naming what to do when there is no such flow."""
        found = await self.flow(name)
        if found is None:
            raise NotFound(
                f"there is no flow {name!r}",
                reason="FLOW_NOT_FOUND",
                next_step="List them: headrace flow list; create one: headrace flow apply FILE",
            )
        return found

    async def all_flows(self) -> list[FlowDocument]:
        return [decode(entry.value or b"", FlowDocument) for entry in await self.flows.entries("flow.*")]

    async def flow_revisions(self) -> dict[str, int]:
        """All flows, with the revisions of their documents."""
        return {entry.key.removeprefix("flow."): entry.revision for entry in await self.flows.entries("flow.*")}

    async def write_flow(self, document: FlowDocument, revision: int) -> int:
        return await self.flows.update(flow_key(document.flow), encode(document), revision)

    async def change_flow(
        self, name: str, edit: Callable[[FlowDocument], Awaitable[FlowDocument]], *, mark: str = ""
    ) -> FlowDocument:
        """Reads, edits, writes; again when somebody else was faster. Errors of `edit` go through. What a call with
        this mark has changed already is not changed again."""
        for pause_s in CAS_PAUSES_S:
            document, revision = await self.existing_flow(name)
            if mark and mark in document.requests:
                return document
            changed = noted(document, marked(await edit(document), mark), current_caller(), self.now())
            try:
                await self.write_flow(changed, revision)
            except Conflict:
                await asyncio.sleep(pause_s)
                continue
            return changed
        raise keeps_changing(f"flow {name!r}")

    async def deleted_flow(self, name: str) -> DeletedFlow | None:
        entry = await self.flows.get(deleted_flow_key(name))
        return decode(entry.value or b"", DeletedFlow) if entry else None

    async def remember_deleted(self, document: FlowDocument, mark: str = "") -> DeletedFlow:
        """Before the flow's document goes; `mark` is that of the call that deletes it."""
        entry = HistoryEntry(document.history_next, self.now(), current_caller(), document.flow, "delete")
        remains = DeletedFlow(
            document.next_deployment,
            document.parking_epoch + 1,
            document.assets_generation + 1,
            history_next=document.history_next + 1,
            history=(*document.history, entry),
            requests=marked(document, mark).requests,
        )
        await self.flows.put(deleted_flow_key(document.flow), encode(remains))
        return remains

    async def version(self, flow: str, number: int) -> VersionDocument:
        entry = await self.flows.get(version_key(flow, number))
        if entry is None:
            raise NotFound(f"there is no version {number} of flow {flow!r}", reason="VERSION_NOT_FOUND")
        return decode(entry.value or b"", VersionDocument)

    async def versions(self, flow: str) -> list[VersionDocument]:
        found = [decode(entry.value or b"", VersionDocument) for entry in await self.flows.entries(f"version.{flow}.*")]
        return sorted(found, key=lambda version: version.number)

    # Operations.

    async def operation(self, identifier: str) -> tuple[OperationDocument, int] | None:
        entry = await self.flows.get(operation_key(identifier))
        return (decode(entry.value or b"", OperationDocument), entry.revision) if entry else None

    async def operations(self) -> list[OperationDocument]:
        return [decode(entry.value or b"", OperationDocument) for entry in await self.flows.entries("operation.*")]

    async def begin_operation(self, document: OperationDocument) -> None:
        """Writes it unless it is there already."""
        with contextlib.suppress(Conflict):
            await self.flows.create(operation_key(document.id), encode(document))

    async def write_operation(self, document: OperationDocument) -> None:
        """Creates or replaces; an operation that is done is never changed again."""
        for pause_s in CAS_PAUSES_S:
            found = await self.operation(document.id)
            try:
                if found is None:
                    await self.flows.create(operation_key(document.id), encode(document))
                elif not found[0].done:
                    await self.flows.update(operation_key(document.id), encode(document), found[1])
            except Conflict:
                await asyncio.sleep(pause_s)
                continue
            return
        raise keeps_changing(f"operation {document.id}")

    # Deployments.

    async def plan(self, flow: str, number: int) -> DeploymentPlan | None:
        entry = await self.deployments.get(bucket_names.plan_key(flow, number))
        if entry is None:
            return None
        raw = entry.value or b""
        self._plan_digests[flow, number] = plan_digest(raw)
        return decode_plan(raw)

    def digest_of(self, plan: DeploymentPlan) -> str:
        """Digest of a plan's bytes as they are stored. An older version of Headrace wrote other bytes for it (a field
        less) than this one would, and sidecars hold what they read against it."""
        return self._plan_digests.get((plan.flow, plan.deployment)) or plan_digest(encode_plan(plan))

    async def create_plan(self, plan: DeploymentPlan) -> str:
        """Writes the plan once; an equal one that is there already is a success. Answers its digest."""
        raw = encode_plan(plan)
        try:
            await self.deployments.create(bucket_names.plan_key(plan.flow, plan.deployment), raw)
        except Conflict:
            entry = await self.deployments.get(bucket_names.plan_key(plan.flow, plan.deployment))
            if entry is None or entry.value != raw:
                raise
        self._plan_digests[plan.flow, plan.deployment] = plan_digest(raw)
        return plan_digest(raw)

    async def state(self, flow: str, number: int) -> tuple[DeploymentState, int] | None:
        entry = await self.deployments.get(bucket_names.state_key(flow, number))
        return (decode_state(entry.value or b""), entry.revision) if entry else None

    async def write_state(self, flow: str, number: int, state: DeploymentState, revision: int) -> int:
        """Compare-and-set; revision 0 creates."""
        key = bucket_names.state_key(flow, number)
        if revision == 0:
            return await self.deployments.create(key, encode_state(state))
        return await self.deployments.update(key, encode_state(state), revision)

    # Timers.

    async def tick_cursor(self, flow: str) -> tuple[TickCursor, int] | None:
        entry = await self.flows.get(tick_key(flow))
        return (decode(entry.value or b"", TickCursor), entry.revision) if entry else None

    async def write_tick_cursor(self, flow: str, cursor: TickCursor, revision: int) -> int:
        """Compare-and-set; revision 0 creates."""
        if revision == 0:
            return await self.flows.create(tick_key(flow), encode(cursor))
        return await self.flows.update(tick_key(flow), encode(cursor), revision)

    # Routes and pins.

    async def route(self, flow: str) -> tuple[Route | None, int]:
        """The route and its revision; None and 0 where there is none."""
        entry = await self.routes.get(flow)
        return (decode_route(entry.value or b""), entry.revision) if entry else (None, 0)

    async def write_route(self, route: Route, revision: int) -> None:
        """Compare-and-set; revision 0 creates."""
        if revision == 0:
            await self.routes.create(route.flow, encode_route(route))
        else:
            await self.routes.update(route.flow, encode_route(route), revision)

    async def pin(self, digests: set[str], flow: str, holder: str, resource: str) -> None:
        """Pins digests for a holder (`d3`, `v1`); `resource` is the holder's name as people see it."""
        value = json.dumps({"holder": resource}).encode()
        keys = [bucket_names.pin_key(digest, flow, holder) for digest in sorted(digests)]
        await asyncio.gather(*(self.pins.put(key, value) for key in keys))

    async def unpin(self, flow: str, holder: str, keep: frozenset[str] = frozenset()) -> None:
        """Removes a holder's pins but those of the digests to keep."""
        kept = {bucket_names.pin_key(digest, flow, holder) for digest in keep}
        present = await self.pins.keys(f"*.{flow}.{holder}")
        await asyncio.gather(*(self.pins.delete(key) for key in present if key not in kept))
