"""How many uploads are in work at once, each streamed to the object store a chunk at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from headrace.edge.attachment_store import AttachmentStore, AttachmentUpload
from services.gateway.domain.admission import Admission

NewUpload = Callable[[], AttachmentUpload]

MAX_UPLOADS = 16
UPLOAD_BYTES = 1024 * 1024
"""What an upload may hold of the gateway's memory."""
DISCARD_LIMIT_S = 2.0


class UploadSlots:
    """Refusal 429 where as many are in work as may be, of all flows or of one."""

    def __init__(self, store: AttachmentStore, max_uploads: int = MAX_UPLOADS) -> None:
        self._store = store
        self._admission = Admission(max_requests=max_uploads, what="uploads")

    @property
    def limit(self) -> int:
        """Bytes of one attachment."""
        return self._store.limit

    @property
    def in_work(self) -> int:
        return self._admission.requests

    @asynccontextmanager
    async def slot(self, flow: str) -> AsyncIterator[NewUpload]:
        """A place; what was begun in it and fails inside is discarded."""
        self._admission.enter(flow)
        begun: list[AttachmentUpload] = []

        def new_upload() -> AttachmentUpload:
            upload = self._store.new_upload()
            begun.append(upload)
            return upload

        try:
            yield new_upload
        except BaseException:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DISCARD_LIMIT_S):
                    for upload in begun:
                        await upload.discard()
            raise
        finally:
            self._admission.leave(flow, 0)

    async def take_back(self, flow: str, identities: list[str]) -> None:
        """Removes objects that nothing names, for certain; what cannot be removed now is collected later."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(DISCARD_LIMIT_S):
                for identity in identities:
                    await self._store.bucket.delete(await self._store.find(flow, identity))
