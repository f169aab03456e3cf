"""Attachments in and out, a chunk at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc

from headrace.api.attachment.v1 import attachment_pb2, attachment_pb2_grpc
from headrace.client.errors import error_of_call
from headrace.client.session import Session, resource

CHUNK_BYTES = 256 * 1024
TRANSFER_TIMEOUT_S = 900.0


class AttachmentCalls(Session):
    """What messages name is in the mesh's object store; it is had by flow and id."""

    async def upload_attachment(
        self, flow: str, source: Path | bytes, *, name: str = "", content_type: str = "", digest: str = ""
    ) -> attachment_pb2.Attachment:
        """Stores a file (or bytes) for a message of the flow: `inject(..., attachments=[answer])`, within 15 minutes.
        Exhausted where it is larger than an attachment may be. Not repeated by itself."""
        header = attachment_pb2.UploadHeader(
            parent=resource("flows", flow),
            file_name=name or (source.name if isinstance(source, Path) else ""),
            content_type=content_type,
            digest=digest,
        )
        stub = attachment_pb2_grpc.AttachmentServiceStub(self.channel)  # type: ignore[no-untyped-call]
        try:
            answer: attachment_pb2.Attachment = await stub.UploadAttachment(
                _parts(header, source), timeout=TRANSFER_TIMEOUT_S, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, self.address) from None
        return answer

    async def download_attachment(self, flow: str, identity: str) -> AsyncGenerator[bytes, None]:
        """Its bytes, a chunk at a time; the mesh checks their digest, and Damaged comes after the last one where they
        differ. NotFound once it was collected."""
        name = f"{resource('flows', flow)}/attachments/{identity}"
        stub = attachment_pb2_grpc.AttachmentServiceStub(self.channel)  # type: ignore[no-untyped-call]
        request = attachment_pb2.DownloadAttachmentRequest(name=name)
        async for answer in self._stream(stub.DownloadAttachment, request):
            if answer.WhichOneof("part") == "chunk":
                yield answer.chunk


async def _parts(
    header: attachment_pb2.UploadHeader, source: Path | bytes
) -> AsyncIterator[attachment_pb2.UploadAttachmentRequest]:
    yield attachment_pb2.UploadAttachmentRequest(header=header)
    if isinstance(source, bytes):
        for begin in range(0, len(source), CHUNK_BYTES):
            yield attachment_pb2.UploadAttachmentRequest(chunk=source[begin : begin + CHUNK_BYTES])
        return
    with await asyncio.to_thread(source.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield attachment_pb2.UploadAttachmentRequest(chunk=chunk)
