"""Bundles in the JetStream object store, named by the hex of their digest.

Nothing is handed out before both digests were checked. An upload that was cut off leaves chunks without metadata,
which nobody sees and `collector` removes.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256
from tempfile import TemporaryFile
from typing import BinaryIO

from nats.aio.client import Client

from headrace.edge.bundle import content_digest
from headrace.edge.object_bucket import CHUNK_BYTES, ObjectBucket, StoredObject, object_digest
from headrace.edge.structured_log import get_logger
from headrace.model.bundle_rules import MAX_BUNDLE_BYTES
from headrace.model.errors import Conflict, Damaged, InvalidInput

log = get_logger(__name__)

CHANGE_ATTEMPTS = 10


class BundleStore:
    """One object store. A broker that does not answer raises Unavailable."""

    def __init__(self, bucket: ObjectBucket) -> None:
        self._bucket = bucket
        self.delete = bucket.delete
        self.list_objects = bucket.list_objects
        self.drop_chunks_without_object = bucket.drop_chunks_without_object

    @classmethod
    async def open(cls, connection: Client, bucket: str, *, replicas: int = 0) -> BundleStore:
        """Creates the store if it is not there; `replicas` 0: as many as `headrace.edge.replication` says."""
        return cls(await ObjectBucket.open(connection, bucket, replicas=replicas))

    async def find(self, digest: str) -> StoredObject | None:
        """The object of a digest, None when there is none."""
        return await self._bucket.find(_name(digest))

    async def ensure(self, digest: str, file: BinaryIO) -> StoredObject:
        """Makes sure that the bundle in `file` is stored whole, and gives its metadata a new sequence.

        The new sequence keeps a delete that began earlier from taking the object away. Equal content that is
        there and intact is not sent again; a damaged object is replaced.
        """
        name = _name(digest)
        for _ in range(CHANGE_ATTEMPTS):
            newest = await self._bucket.newest(name)
            expected = newest.sequence if newest is not None else 0
            try:
                if newest is not None and not newest.info.deleted:
                    if await self._is_intact(newest, digest):
                        return await self._bucket.commit(newest.info, expected)
                    log.warning("damaged bundle is replaced", digest=digest)
                    stored = await self._upload(name, file, expected)
                    await self._bucket.drop_chunks(newest.info.nuid)
                    return stored
                return await self._upload(name, file, expected)
            except Conflict:
                continue
        raise Conflict(f"bundle {digest} kept changing", reason="REVISION_CHANGED", next_step="Push again")

    async def fetch(self, stored: StoredObject, digest: str, into: BinaryIO) -> None:
        """Writes the checked bytes; Damaged when a chunk is missing or any byte differs."""
        info = stored.info
        if info.size > MAX_BUNDLE_BYTES:
            raise _damaged(digest, f"its metadata says {info.size:,} bytes")
        hashed = sha256()
        size = 0
        try:
            async for chunk in self._bucket.chunks(info):
                size += len(chunk)
                if size > info.size:
                    raise _damaged(digest, "it has more bytes than were stored")
                hashed.update(chunk)
                await asyncio.to_thread(into.write, chunk)
        except Damaged as error:
            if error.reason != "CHUNK_MISSING":
                raise
            raise _damaged(digest, error.message) from error
        if size != info.size or object_digest(hashed.digest()) != info.digest:
            raise _damaged(digest, "its stored bytes were altered")
        try:
            found = await asyncio.to_thread(content_digest, into)
        except InvalidInput as error:
            raise _damaged(digest, f"its content cannot be read ({error.message})") from error
        if found != digest:
            raise _damaged(digest, f"its content has digest {found}")
        into.seek(0)

    async def _is_intact(self, stored: StoredObject, digest: str) -> bool:
        with TemporaryFile() as scratch:
            try:
                await self.fetch(stored, digest, scratch)
            except Damaged as error:
                log.warning("bundle is damaged", digest=digest, error=error.message)
                return False
        return True

    async def _upload(self, name: str, file: BinaryIO, expected: int) -> StoredObject:
        upload = self._bucket.new_upload()
        file.seek(0)
        try:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                await upload.write(chunk)
            info = self._bucket.info_of(name, upload, await upload.finish())
            return await self._bucket.commit(info, expected)
        except Conflict:
            await upload.discard()
            raise


def _name(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _damaged(digest: str, problem: str) -> Damaged:
    return Damaged(
        f"bundle {digest} is damaged: {problem}",
        reason="BUNDLE_DAMAGED",
        next_step="Push the same folder again: equal content replaces what is damaged",
        metadata={"digest": digest},
    )
