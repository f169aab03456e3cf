"""RegistryService: messages in and out; what happens is in `catalogue`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from headrace.api.registry.v1 import registry_pb2, registry_pb2_grpc
from headrace.edge.request_book import RequestBook, Ticket
from headrace.edge.resumable_watch import WatchStep, messages_of
from headrace.model.errors import DeadlineExceeded, InvalidInput
from headrace.model.names import is_digest, parse_reference, parse_resource
from headrace.model.pages import Page, bounded
from headrace.wire.manifest import manifest_to_proto
from services.registry.catalogue import Catalogue, RevisionView
from services.registry.component_store import FoundComponent
from services.registry.domain.component_record import decode_component
from services.registry.transfer_slots import TransferSlots
from services.registry.upload import ReceivedBundle, received_bundle

SEND_BYTES = 512 * 1024
MAX_TRANSFERS = 4
PUSH_LIMIT_S = 120.0
SEND_LIMIT_S = 120.0


class RegistryRpc(registry_pb2_grpc.RegistryServiceServicer):
    """Thin servicer; errors are translated by the server's interceptor."""

    def __init__(self, catalogue: Catalogue, requests: RequestBook, stopping: asyncio.Event) -> None:
        self._requests = requests
        self._catalogue = catalogue
        self._stopping = stopping
        self._receiving = TransferSlots(MAX_TRANSFERS)
        self._sending = TransferSlots(MAX_TRANSFERS)

    async def PushRevision(
        self, request_iterator: AsyncIterator[registry_pb2.PushRevisionRequest], context: Any
    ) -> registry_pb2.PushRevisionResponse:
        try:
            async with (
                asyncio.timeout(PUSH_LIMIT_S),
                self._receiving.one(),
                received_bundle(aiter(request_iterator)) as received,
            ):
                return await self._pushed(received)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"push: took more than {PUSH_LIMIT_S:.0f} s", reason="PUSH_TOO_SLOW", next_step="Push again"
            ) from error

    async def _pushed(self, received: ReceivedBundle) -> registry_pb2.PushRevisionResponse:
        header = received.header
        header.digest = received.content.digest  # what the request id stands for

        async def push(_: Ticket) -> registry_pb2.PushRevisionResponse:
            if header.validate_only:
                size = received.file.seek(0, os.SEEK_END)
                view, created = await self._catalogue.would_push(received.content, size)
            else:
                view, created = await self._catalogue.push(received.content, received.file)
            return registry_pb2.PushRevisionResponse(revision=revision_to_proto(view), created=created)

        kind = registry_pb2.PushRevisionResponse
        return await self._requests.once("RegistryService/PushRevision", header, kind, push)

    async def GetComponent(self, request: registry_pb2.GetComponentRequest, context: Any) -> registry_pb2.Component:
        (name,) = parse_resource("name", request.name, "components")
        return component_to_proto(await self._catalogue.components.get(name))

    async def ListComponents(
        self, request: registry_pb2.ListComponentsRequest, context: Any
    ) -> registry_pb2.ListComponentsResponse:
        page = Page.asked("the list of components", request.page_size, request.page_token)
        found = await self._catalogue.components.list()
        components, token = page.take(found, lambda one: one.record.name, component_to_proto)
        return registry_pb2.ListComponentsResponse(components=components, next_page_token=token)

    async def GetRevision(self, request: registry_pb2.GetRevisionRequest, context: Any) -> registry_pb2.Revision:
        name, number = parse_resource("name", request.name, "components", "revisions")
        return revision_to_proto(await self._catalogue.revision(name, int(number)))

    async def ListRevisions(
        self, request: registry_pb2.ListRevisionsRequest, context: Any
    ) -> registry_pb2.ListRevisionsResponse:
        (name,) = parse_resource("parent", request.parent, "components")
        page = Page.asked(f"the revisions of {name}", request.page_size, request.page_token)
        views, more = await self._catalogue.revisions(name, below=page.number, limit=page.size)
        revisions = bounded(revision_to_proto(view) for view in views)
        answer = registry_pb2.ListRevisionsResponse(revisions=revisions)
        if more or len(revisions) < len(views):
            answer.next_page_token = page.token(revisions[-1].number)
        return answer

    async def TagRevision(self, request: registry_pb2.TagRevisionRequest, context: Any) -> registry_pb2.Revision:
        name, number = parse_resource("name", request.name, "components", "revisions")

        async def tag(ticket: Ticket) -> registry_pb2.Revision:
            view = await self._catalogue.tag(name, int(number), request.tag, request.etag, ticket.mark)
            return revision_to_proto(view)

        return await self._requests.once("RegistryService/TagRevision", request, registry_pb2.Revision, tag)

    async def ResolveReference(
        self, request: registry_pb2.ResolveReferenceRequest, context: Any
    ) -> registry_pb2.Revision:
        return revision_to_proto(await self._catalogue.resolve(parse_reference("reference", request.reference)))

    async def DownloadBundle(
        self, request: registry_pb2.DownloadBundleRequest, context: Any
    ) -> AsyncIterator[registry_pb2.DownloadBundleResponse]:
        if not is_digest(request.digest):
            raise InvalidInput.at(
                "digest",
                request.digest,
                "is not sha256: and 64 hex digits",
                next_step="Take it from GetRevision or ResolveReference",
            )
        deadline = asyncio.get_running_loop().time() + SEND_LIMIT_S
        async with self._sending.one():
            file = await self._catalogue.open_bundle(request.digest)
            with file:
                while chunk := await asyncio.to_thread(file.read, SEND_BYTES):
                    if asyncio.get_running_loop().time() > deadline:
                        raise DeadlineExceeded(
                            f"download: took more than {SEND_LIMIT_S:.0f} s", reason="DOWNLOAD_TOO_SLOW"
                        )
                    yield registry_pb2.DownloadBundleResponse(chunk=chunk)

    async def DeleteRevision(
        self, request: registry_pb2.DeleteRevisionRequest, context: Any
    ) -> registry_pb2.DeleteRevisionResponse:
        name, number = parse_resource("name", request.name, "components", "revisions")

        async def delete(ticket: Ticket) -> registry_pb2.DeleteRevisionResponse:
            await self._catalogue.delete(name, int(number), etag=request.etag, mark=ticket.mark)
            return registry_pb2.DeleteRevisionResponse()

        kind = registry_pb2.DeleteRevisionResponse
        return await self._requests.once("RegistryService/DeleteRevision", request, kind, delete)

    async def PurgeRevisions(
        self, request: registry_pb2.PurgeRevisionsRequest, context: Any
    ) -> registry_pb2.PurgeRevisionsResponse:
        name = "" if request.parent == "components/-" else parse_resource("parent", request.parent, "components")[0]

        async def purge(_: Ticket) -> registry_pb2.PurgeRevisionsResponse:
            if request.force:
                views = await self._catalogue.purge(name, frozenset(request.names))
            else:
                views = await self._catalogue.unused(name)
            revisions = [revision_to_proto(view) for view in views]
            for revision in revisions:
                revision.ClearField("manifest")  # so that the answer stays small
            return registry_pb2.PurgeRevisionsResponse(revisions=revisions)

        kind = registry_pb2.PurgeRevisionsResponse
        return await self._requests.once("RegistryService/PurgeRevisions", request, kind, purge)

    async def WatchComponents(
        self, request: registry_pb2.WatchComponentsRequest, context: Any
    ) -> AsyncIterator[registry_pb2.WatchComponentsResponse]:
        async def message(step: WatchStep) -> registry_pb2.WatchComponentsResponse:
            answer = registry_pb2.WatchComponentsResponse(revision=step.token, synced=step.synced)
            for entry in step.entries:
                if entry.value is None:
                    answer.deleted.append(f"components/{entry.key.removeprefix('component.')}")
                    continue
                found = FoundComponent(decode_component(entry.value), entry.revision)
                answer.components.append(component_to_proto(found))
            return answer

        async for answer in messages_of(self._catalogue.components.watch(), request.revision, self._stopping, message):
            yield answer


def component_to_proto(found: FoundComponent) -> registry_pb2.Component:
    record = found.record
    return registry_pb2.Component(
        name=f"components/{record.name}",
        title=record.title,
        latest_revision=record.latest_number,
        tags=record.tags,
        create_time=_timestamp(record.created_at),
        etag=found.etag,
    )


def revision_to_proto(view: RevisionView) -> registry_pb2.Revision:
    return registry_pb2.Revision(
        name=f"components/{view.component}/revisions/{view.entry.number}",
        number=view.entry.number,
        digest=view.entry.digest,
        bundle_bytes=view.bundle.bundle_bytes,
        content_bytes=view.bundle.content_bytes,
        manifest=manifest_to_proto(view.bundle.manifest),
        version=view.entry.version,
        create_time=_timestamp(view.entry.created_at),
        pinned_by=view.pinned_by,
        lock_digest=view.bundle.lock_digest,
    )


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(int(seconds * 1_000_000))
    return stamp
