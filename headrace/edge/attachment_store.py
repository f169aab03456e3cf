"""Attachments in the object store: uploaded and read in chunks, named by what they are.

An object is filed under its flow, and its name is a hash of the message for whose sake it was uploaded and of its
bytes, so that a repeated attempt finds the object of the first. Its metadata says what keeps it besides the messages
that name it (services/orchestrator/attachment_sweeper): the time it is kept at least, and, for what a step uploads,
the input in whose call it was made.
"""

from __future__ import annotations

import contextlib
import time
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from msgspec.structs import replace
from nats.aio.client import Client

from headrace.api.attachment.v1.attachment_pb2 import Attachment
from headrace.api.message.v1.message_pb2 import Envelope
from headrace.edge.object_bucket import CHUNK_BYTES, ObjectBucket, ObjectUpload, StoredObject
from headrace.model import bucket_names
from headrace.model.attachments import KEEP_S, attachment_id, object_name
from headrace.model.errors import Conflict, Damaged, Exhausted, NotFound, OutOfRange

COMMIT_ATTEMPTS = 10
COMMIT_WITHIN_S = 1_800.0
"""An upload that takes longer is refused: its first chunks may have been collected."""

GONE = "ATTACHMENT_GONE"
DAMAGED = "ATTACHMENT_DAMAGED"
TOO_LARGE = "ATTACHMENT_TOO_LARGE"


@dataclass(frozen=True, slots=True)
class Filing:
    """For whose sake an object is uploaded: `parent` as in `attachment_id`; `holder` is the stream sequence of the
    input in whose call it is made, which keeps it until that is acknowledged (0: there is none)."""

    parent: str
    holder: int = 0
    keep_s: float = KEEP_S


class AttachmentUpload:
    """One upload. `write` any number of times, then `finish`; or `discard`. Exhausted past the limit."""

    def __init__(self, store: AttachmentStore, upload: ObjectUpload, limit: int) -> None:
        self._store = store
        self._upload = upload
        self._limit = limit
        self._began_at = time.monotonic()
        self._digest = b""

    @property
    def size(self) -> int:
        return self._upload.size

    async def write(self, data: bytes | memoryview) -> None:
        """Returns when what is more than one chunk is stored."""
        if self._upload.size + len(data) > self._limit:
            raise too_large(self._limit)
        await self._upload.write(data)

    @property
    def digest(self) -> str:
        """`sha256:...`, after `end`."""
        return f"sha256:{self._digest.hex()}"

    async def end(self) -> None:
        """No more is written: what is still in memory is stored."""
        self._digest = self._digest or await self._upload.finish()

    async def finish(
        self,
        flow: str,
        filing: Filing,
        *,
        name: str = "",
        content_type: str = "",
        is_body: bool = False,
        digest: str = "",
    ) -> Attachment:
        """Makes it an object; Damaged if `digest` is given and is not that of its bytes."""
        await self.end()
        if digest and digest != self.digest:
            problem = f"the upload has digest {self.digest}, not {digest}"
            raise Damaged(problem, reason=DAMAGED, next_step="Upload it again")
        if time.monotonic() - self._began_at > COMMIT_WITHIN_S:
            raise OutOfRange(f"the upload took longer than {COMMIT_WITHIN_S:g} s", reason="UPLOAD_TOO_SLOW")
        size = self._upload.size
        identity = attachment_id(filing.parent, self._digest, size)
        await self._store.commit(self._upload, self._digest, flow, identity, filing)
        return Attachment(
            id=identity, name=name, content_type=content_type, size=size, digest=self.digest, is_body=is_body
        )

    async def discard(self) -> None:
        """Removes what was stored so far."""
        await self._upload.discard()


class AttachmentStore:
    """The workspace's attachments. Unavailable when the broker does not answer."""

    def __init__(self, bucket: ObjectBucket, limit: int) -> None:
        self.bucket = bucket
        self.limit = limit

    @classmethod
    async def open(cls, connection: Client, workspace: str, limit: int) -> AttachmentStore:
        """`limit`: bytes of the largest one."""
        return cls(await ObjectBucket.open(connection, bucket_names.attachment_store(workspace)), limit)

    def new_upload(self) -> AttachmentUpload:
        """Holds one chunk in memory."""
        return AttachmentUpload(self, self.bucket.new_upload(), self.limit)

    async def commit(self, upload: ObjectUpload, digest: bytes, flow: str, identity: str, filing: Filing) -> None:
        """Files the upload; where the same object is there already it is kept anew, and the upload dropped."""
        name = object_name(flow, identity)
        for _ in range(COMMIT_ATTEMPTS):
            newest = await self.bucket.newest(name)
            expected = newest.sequence if newest is not None else 0
            live = newest is not None and not newest.info.deleted
            fresh = self.bucket.info_of(name, upload, digest, _metadata(filing))
            try:
                if live and newest is not None:
                    since = newest.info.metadata.get("created", fresh.metadata["created"])
                    metadata = {**fresh.metadata, "created": since}
                    await self.bucket.commit(replace(newest.info, metadata=metadata), expected)
                    await upload.discard()
                else:
                    await self.bucket.commit(fresh, expected)
                return
            except Conflict:
                continue
        raise Conflict(f"attachment {identity} kept changing", reason="REVISION_CHANGED", next_step="Upload it again")

    async def keep(self, flow: str, identity: str, keep_s: float = KEEP_S) -> None:
        """Keeps an object for that time at least, whoever names it: before a reference to it is published by somebody
        who does not have it from a message of the same stream. NotFound ATTACHMENT_GONE."""
        for _ in range(COMMIT_ATTEMPTS):
            stored = await self.find(flow, identity)
            left_s = stored.stored_at + keep_s_of(stored) - time.time()
            metadata = {**stored.info.metadata, "keep_s": f"{max(keep_s, left_s):.3f}"}
            try:
                await self.bucket.commit(replace(stored.info, metadata=metadata), stored.sequence)
                return
            except Conflict:
                continue
        raise Conflict(f"attachment {identity} kept changing", reason="REVISION_CHANGED", next_step="Try again")

    async def find(self, flow: str, identity: str) -> StoredObject:
        """NotFound ATTACHMENT_GONE where there is none."""
        stored = await self.bucket.find(object_name(flow, identity))
        if stored is None:
            raise gone(flow, identity)
        return stored

    async def describe(self, flow: str, identity: str) -> Attachment:
        """Id, size and digest of an object; ATTACHMENT_GONE."""
        info = (await self.find(flow, identity)).info
        digest = urlsafe_b64decode(info.digest.removeprefix("SHA-256=")).hex()
        return Attachment(id=identity, size=info.size, digest=f"sha256:{digest}")

    async def read(self, flow: str, attachment: Attachment, *, offset: int = 0) -> AsyncIterator[bytes]:
        """Its bytes from `offset` on, a chunk at a time. NotFound ATTACHMENT_GONE; Damaged where a chunk is missing,
        or, after the last one, where all of them (from 0) are not what the digest says."""
        info = (await self.find(flow, attachment.id)).info
        first, skip = divmod(offset, CHUNK_BYTES)
        hashed, size = sha256(), 0
        with _missing_chunks(flow, attachment.id):
            async for chunk in self.bucket.chunks(info, first=first):
                if not offset:
                    hashed.update(chunk)
                size += len(chunk)
                yield chunk[skip:] if skip else chunk
                skip = 0
        whole = size == attachment.size and f"sha256:{hashed.hexdigest()}" == attachment.digest
        if not offset and not whole:
            raise damaged(flow, attachment.id, "its bytes are not what its digest says")


class AttachmentAccess:
    """The store, opened when it is first needed: most processes never do."""

    def __init__(self, connection: Client, workspace: str, limit: int) -> None:
        self._open = partial(AttachmentStore.open, connection, workspace, limit)
        self._store: AttachmentStore | None = None

    async def keep_named(self, flow: str, envelope: Envelope) -> None:
        """As `AttachmentStore.keep`, of all that a message names."""
        for identity in dict.fromkeys(item.id for item in named_by(envelope)):
            await (await self.store()).keep(flow, identity)

    async def store(self) -> AttachmentStore:
        """Unavailable when the broker does not answer."""
        if self._store is None:
            self._store = await self._open()
        return self._store


def named_by(envelope: Envelope) -> Iterator[Attachment]:
    """Everything in the store that a message names: its own, and what steps before it have emitted."""
    yield from envelope.attachments
    for passed in envelope.passthrough:
        yield from passed.attachments


def keep_s_of(stored: StoredObject) -> float:
    """How long it is kept at least from when its metadata was written last."""
    try:
        return float(stored.info.metadata.get("keep_s", KEEP_S))
    except ValueError:
        return KEEP_S


def _metadata(filing: Filing) -> dict[str, str]:
    created = {"created": f"{time.time():.3f}", "keep_s": f"{filing.keep_s:g}"}
    return {**created, "holder": str(filing.holder)} if filing.holder else created


def gone(flow: str, identity: str) -> NotFound:
    """The error of an object that is not there."""
    return NotFound(
        f"attachment {identity} of flow {flow} is not in the store: it was never whole, or has been collected",
        reason=GONE,
        next_step="Send the message again with its file",
        metadata={"flow": flow, "attachment": identity},
    )


def damaged(flow: str, identity: str, problem: str) -> Damaged:
    """The error of an object that is not what it should be."""
    return Damaged(
        f"attachment {identity} of flow {flow} is damaged: {problem}",
        reason=DAMAGED,
        next_step="Send the message again with its file",
        metadata={"flow": flow, "attachment": identity},
    )


def too_large(limit: int) -> Exhausted:
    """The error of an upload past the limit."""
    return Exhausted(
        f"more than {limit} bytes, which is the limit of an attachment",
        reason=TOO_LARGE,
        next_step="Send less, or raise HEADRACE_MAX_ATTACHMENT_MB for the mesh",
        metadata={"limit": str(limit)},
    )


@contextlib.contextmanager
def _missing_chunks(flow: str, identity: str) -> Iterator[None]:
    try:
        yield
    except Damaged as error:
        if error.reason != "CHUNK_MISSING":
            raise
        raise damaged(flow, identity, error.message) from error
