"""Replies above 512 KiB: read from the object store a chunk at a time, while the caller takes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from headrace.api.attachment.v1.attachment_pb2 import Attachment
from headrace.edge.attachment_store import AttachmentStore
from headrace.edge.structured_log import get_logger
from headrace.model.errors import HeadraceError
from headrace.wire.envelope import Reply
from services.gateway.domain import refusals

log = get_logger(__name__)

MAX_AT_ONCE = 16
PLACE_LIMIT_S = 20.0


class CutOff(Exception):
    """The response had begun, and cannot be finished."""


class LargeReplies:
    """At most 16 are read at once; more wait for a place, 20 s."""

    def __init__(self, store: AttachmentStore) -> None:
        self._store = store
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    async def chunks(self, flow: str, reply: Reply) -> AsyncGenerator[bytes, None]:
        """The body. Refusal 502 before its first chunk, CutOff after it, where it cannot be had."""
        try:
            async with asyncio.timeout(PLACE_LIMIT_S):
                await self._places.acquire()
        except TimeoutError:
            raise refusals.gateway_full("large replies", MAX_AT_ONCE) from None
        try:
            async for chunk in self._read(flow, reply.large_body, reply):
                yield chunk
        finally:
            self._places.release()

    async def _read(self, flow: str, body: Attachment, reply: Reply) -> AsyncIterator[bytes]:
        begun = False
        try:
            async for chunk in self._store.read(flow, body):
                begun = True
                yield chunk
        except HeadraceError as error:
            if not begun:
                raise refusals.bad_reply(
                    reply.step, f"a body that is not there: {error}", reply.execution_id
                ) from error
            log.error("a large reply was cut off", flow=flow, execution=reply.execution_id, error=str(error))
            raise CutOff from error
