"""Attachments of a test: what the object store and the sidecar are to a component in the mesh, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from hashlib import sha256
from typing import Any

from headrace.api.attachment.v1 import attachment_pb2
from headrace.api.component.v1 import component_pb2
from headrace.model.attachments import CHUNK_BYTES, MAX_ATTACHMENT_BYTES, attachment_id, clean_name, clean_type
from headrace.sdk.errors import ComponentError


class MemoryTransfers:
    """Implements `headrace.sdk.attachments.Transfers`. `stored` has the bytes, by id."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.stored: dict[str, bytes] = {}
        self._last = 0
        self._uploads: dict[int, asyncio.Future[attachment_pb2.Attachment]] = {}

    def put(self, content: bytes, *, name: str = "", content_type: str = "", is_body: bool = False) -> Any:
        """Stores bytes; answers what a message names them by."""
        raw = sha256(content).digest()
        identity = attachment_id("test", raw, len(content))
        self.stored[identity] = content
        return attachment_pb2.Attachment(
            id=identity,
            name="" if is_body else clean_name(name),
            content_type=clean_type(content_type),
            size=len(content),
            digest=f"sha256:{raw.hex()}",
            is_body=is_body,
        )

    async def download(self, call: int, identity: str, offset: int = 0) -> AsyncIterator[bytes]:
        """See Transfers."""
        content = self.stored.get(identity)
        if content is None:
            raise ComponentError("ATTACHMENT_GONE", f"attachment {identity} is not in the store")
        for begin in range(offset, len(content), CHUNK_BYTES):
            yield content[begin : begin + CHUNK_BYTES]

    def next_upload(self) -> int:
        """See Transfers."""
        self._last += 1
        return self._last

    async def upload(
        self, number: int, call: int, given: attachment_pb2.Attachment, chunks: AsyncIterator[bytes]
    ) -> attachment_pb2.Attachment:
        """See Transfers."""
        stored = self._upload(number)
        try:
            content = bytearray()
            async for chunk in chunks:
                content += chunk
                if len(content) > MAX_ATTACHMENT_BYTES:
                    raise ComponentError("ATTACHMENT_TOO_LARGE", f"more than {MAX_ATTACHMENT_BYTES} bytes")
            found = self.put(bytes(content), name=given.name, content_type=given.content_type, is_body=given.is_body)
        except BaseException as error:
            stored.cancel()
            raise error
        stored.set_result(found)
        answer = attachment_pb2.Attachment()
        answer.CopyFrom(found)
        return answer

    async def complete(self, events: Iterable[component_pb2.Event]) -> None:
        """Makes references in outputs and replies whole, in place."""
        for event in events:
            if event.HasField("data"):
                for reference in event.data.attachments:
                    await self.complete_reference(reference)
            elif event.HasField("reply") and event.reply.HasField("large_body"):
                await self.complete_reference(event.reply.large_body)

    async def complete_reference(self, reference: attachment_pb2.Attachment) -> None:
        """The same for one."""
        if reference.upload:
            is_body, name = reference.is_body, reference.name
            reference.CopyFrom(await self._upload(reference.upload))
            reference.is_body, reference.name = is_body, "" if is_body else name or reference.name

    def _upload(self, number: int) -> asyncio.Future[attachment_pb2.Attachment]:
        if number not in self._uploads:
            self._uploads[number] = self.loop.create_future()
        return self._uploads[number]
