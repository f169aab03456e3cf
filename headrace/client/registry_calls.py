"""Components and their revisions: `RegistryService`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from headrace.api.registry.v1 import registry_pb2, registry_pb2_grpc
from headrace.client.session import PAGE_SIZE, Session, new_request_id, resource

CHUNK_BYTES = 512 * 1024
PUSH_TIMEOUT_S = 120.0


class RegistryCalls(Session):
    """Push, list, read, tag and delete."""

    async def push_component(
        self, folder: Path | str, *, validate_only: bool = False
    ) -> registry_pb2.PushRevisionResponse:
        """Packs a component's folder and pushes it; `created` is false when equal content was there already. With
        `validate_only` nothing is stored, and the answer is the revision as it would be.

        Writes the lock of its requirements and the schemas of its typed functions into the bundle (not into
        the folder). InvalidInput when the folder is no component.
        """
        from headrace.client.packing import prepare_bundle  # only here: it takes a while to import

        packed = await asyncio.to_thread(prepare_bundle, Path(folder))
        try:
            return await self.push_bundle(
                packed.path, component=packed.component, digest=packed.digest, validate_only=validate_only
            )
        finally:
            packed.remove()

    async def push_bundle(
        self, path: Path, *, component: str, digest: str, validate_only: bool = False, request_id: str = ""
    ) -> registry_pb2.PushRevisionResponse:
        """Pushes a packed bundle (gzip-compressed tar) as it is. Repeating it is harmless."""
        stub = self._registry()
        header = registry_pb2.PushHeader(
            component=component,
            digest=digest,
            validate_only=validate_only,
            request_id=request_id or new_request_id(),
        )

        async def once(remaining_s: float) -> registry_pb2.PushRevisionResponse:
            return await stub.PushRevision(_parts(path, header), timeout=remaining_s, metadata=self._metadata)

        return await self._attempt(once, PUSH_TIMEOUT_S)

    async def list_components(self) -> list[registry_pb2.Component]:
        """All components, by name."""
        stub = self._registry()

        async def page(token: str) -> tuple[list[registry_pb2.Component], str]:
            request = registry_pb2.ListComponentsRequest(page_size=PAGE_SIZE, page_token=token)
            answer = await self._call(stub.ListComponents, request)
            return list(answer.components), answer.next_page_token

        return await self._collect(page)

    async def get_component(self, component: str) -> registry_pb2.Component:
        request = registry_pb2.GetComponentRequest(name=resource("components", component))
        return await self._call(self._registry().GetComponent, request)

    async def list_revisions(self, component: str) -> list[registry_pb2.Revision]:
        """All revisions of a component, newest first."""
        stub = self._registry()

        async def page(token: str) -> tuple[list[registry_pb2.Revision], str]:
            request = registry_pb2.ListRevisionsRequest(
                parent=resource("components", component), page_size=PAGE_SIZE, page_token=token
            )
            answer = await self._call(stub.ListRevisions, request)
            return list(answer.revisions), answer.next_page_token

        return await self._collect(page)

    async def get_revision(self, component: str, number: int) -> registry_pb2.Revision:
        request = registry_pb2.GetRevisionRequest(name=revision_name(component, number))
        return await self._call(self._registry().GetRevision, request)

    async def resolve_reference(self, reference: str) -> registry_pb2.Revision:
        """The revision that `price`, `price@latest`, `price@1.2.0`, `price@3` or a digest means now."""
        request = registry_pb2.ResolveReferenceRequest(reference=reference)
        return await self._call(self._registry().ResolveReference, request)

    async def tag_revision(
        self, component: str, number: int, tag: str, *, etag: str = "", request_id: str = ""
    ) -> registry_pb2.Revision:
        """Points a tag at a revision. With an etag that is not the component's: Conflict."""
        request = registry_pb2.TagRevisionRequest(
            name=revision_name(component, number), tag=tag, etag=etag, request_id=request_id
        )
        return await self._call(self._registry().TagRevision, request)

    async def delete_revision(self, component: str, number: int, *, etag: str = "", request_id: str = "") -> None:
        """Deletes a revision that nobody pins; WrongState names those who do."""
        request = registry_pb2.DeleteRevisionRequest(
            name=revision_name(component, number), etag=etag, request_id=request_id
        )
        await self._call(self._registry().DeleteRevision, request)

    async def purge_revisions(
        self, component: str = "", *, force: bool = False, names: Sequence[str] = ()
    ) -> list[registry_pb2.Revision]:
        """Revisions that nobody pins and no tag names, the newest of each component never among them.

        They are deleted with `force` (only those named, where names are given), otherwise only listed. Of all
        components without a name.
        """
        parent = resource("components", component or "-")
        request = registry_pb2.PurgeRevisionsRequest(parent=parent, force=force, names=names)
        answer = await self._call(self._registry().PurgeRevisions, request, timeout_s=PUSH_TIMEOUT_S)
        return list(answer.revisions)

    def _registry(self) -> registry_pb2_grpc.RegistryServiceAsyncStub:
        return registry_pb2_grpc.RegistryServiceStub(self.channel)


def revision_name(component: str, number: int) -> str:
    """`components/price/revisions/3`."""
    return f"{resource('components', component)}/revisions/{number}"


async def _parts(path: Path, header: registry_pb2.PushHeader) -> AsyncIterator[registry_pb2.PushRevisionRequest]:
    yield registry_pb2.PushRevisionRequest(header=header)
    with open(path, "rb") as bundle:
        while chunk := bundle.read(CHUNK_BYTES):
            yield registry_pb2.PushRevisionRequest(chunk=chunk)
