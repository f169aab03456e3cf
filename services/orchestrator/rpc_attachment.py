"""`AttachmentService`: attachments in and out by hand, a chunk at a time. Every orchestrator answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from headrace.api.attachment.v1 import attachment_pb2, attachment_pb2_grpc
from headrace.edge.attachment_store import AttachmentAccess, Filing
from headrace.edge.grpc_server import GrpcServer
from headrace.model.attachments import clean_name, clean_type, is_attachment_id
from headrace.model.errors import DeadlineExceeded, Exhausted, InvalidInput
from headrace.model.names import check_name
from services.orchestrator.stores import Stores

SERVICE_NAME = "headrace.api.attachment.v1.AttachmentService"
KEEP_UPLOADED_S = 900.0
MAX_TRANSFERS = 16
MAX_CHUNK_BYTES = 1024 * 1024
PART_TIMEOUT_S = 30.0
"""How long a client may be silent between two parts."""


@dataclass
class AttachmentRpc(attachment_pb2_grpc.AttachmentServiceServicer):
    """At most 16 transfers at once."""

    stores: Stores
    access: AttachmentAccess
    transfers: int = 0

    async def UploadAttachment(  # type: ignore[override]
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> attachment_pb2.Attachment:
        parts = aiter(request_iterator)
        first = await _next(parts)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidInput.at("header", "", "must be the first message", reason="BAD_UPLOAD")
        header = first.header
        flow = _flow_of(header.parent)
        await self.stores.existing_flow(flow)
        with self._place():
            upload = (await self.access.store()).new_upload()
            try:
                while (part := await _next(parts)) is not None:
                    if part.WhichOneof("part") != "chunk" or len(part.chunk) > MAX_CHUNK_BYTES:
                        raise InvalidInput.at(
                            "chunk", len(part.chunk), f"is not 1 to {MAX_CHUNK_BYTES} bytes", reason="BAD_UPLOAD"
                        )
                    await upload.write(part.chunk)
                return await upload.finish(
                    flow,
                    Filing(uuid4().hex, keep_s=KEEP_UPLOADED_S),
                    name=clean_name(header.file_name),
                    content_type=clean_type(header.content_type),
                    digest=header.digest,
                )
            except BaseException:
                await asyncio.shield(upload.discard())
                raise

    async def DownloadAttachment(  # type: ignore[override]
        self, request: attachment_pb2.DownloadAttachmentRequest, context: Any
    ) -> AsyncIterator[attachment_pb2.DownloadAttachmentResponse]:
        parent, _, identity = request.name.partition("/attachments/")
        flow = _flow_of(parent)
        if not is_attachment_id(identity):
            raise InvalidInput.at("name", request.name, "is not flows/<flow>/attachments/<id>")
        with self._place():
            store = await self.access.store()
            attachment = await store.describe(flow, identity)
            yield attachment_pb2.DownloadAttachmentResponse(attachment=attachment)
            async for chunk in store.read(flow, attachment):
                yield attachment_pb2.DownloadAttachmentResponse(chunk=chunk)

    @contextlib.contextmanager
    def _place(self) -> Any:
        if self.transfers >= MAX_TRANSFERS:
            raise Exhausted(
                f"{MAX_TRANSFERS} attachments are being carried, which is the limit",
                reason="TOO_MANY_TRANSFERS",
                next_step="Try again in a moment",
                metadata={"retry_after_ms": "1000"},
            )
        self.transfers += 1
        try:
            yield
        finally:
            self.transfers -= 1


def add_attachments(server: GrpcServer, stores: Stores, access: AttachmentAccess) -> None:
    """Serves it."""
    add = attachment_pb2_grpc.add_AttachmentServiceServicer_to_server
    server.add(add, AttachmentRpc(stores, access), SERVICE_NAME)


def _flow_of(name: str) -> str:
    flow = name.removeprefix("flows/")
    if not name.startswith("flows/"):
        raise InvalidInput.at("name", name, "is not flows/<flow>")
    check_name("flow", flow)
    return flow


async def _next(parts: AsyncIterator[Any]) -> Any:
    """The next part; None at the end."""
    try:
        async with asyncio.timeout(PART_TIMEOUT_S):
            return await anext(parts, None)
    except TimeoutError as error:
        text = f"no part came for {PART_TIMEOUT_S:g} s"
        raise DeadlineExceeded(text, reason="UPLOAD_TOO_SLOW", next_step="Upload it again") from error
