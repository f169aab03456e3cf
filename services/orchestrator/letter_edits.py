"""Edits of dead letters: one document for each letter that was edited, gone with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
from nats.aio.client import Client

from headrace.api.deadletter.v1 import dead_letter_pb2
from headrace.edge.kv_bucket import KvBucket
from headrace.model import bucket_names
from headrace.model.errors import Conflict, InvalidInput
from services.orchestrator.domain.letter_edit import LetterEdit, changed_headers, check_message
from services.orchestrator.letter_store import Letter

NO_EDIT = "0"
DELETED_AT_ONCE = 20


@dataclass
class LetterEdits:
    """`ttl_s` is how long letters are kept, so that the edit of one that was pushed out goes too. The bucket is made
    when a letter is first looked at."""

    connection: Client
    workspace: str
    ttl_s: float
    guard: Callable[[], None] = lambda: None
    _bucket: KvBucket | None = None
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def of(self, flow: str, letter: Letter) -> tuple[LetterEdit | None, str]:
        """The edit, or None, and its etag."""
        entry = await (await self._open()).get(_key(flow, letter.number))
        if entry is None or not entry.value:
            return None, NO_EDIT
        edit = msgspec.json.decode(entry.value, type=LetterEdit)
        content = letter.content
        if not edit.belongs_to(content.original.id, content.at_unix_ns):
            return None, str(entry.revision)
        return edit, str(entry.revision)

    async def write(self, flow: str, number: int, edit: LetterEdit, etag: str) -> str:
        """Keeps it if the letter's edit is the one of `etag` (empty: whatever is there). Answers the new etag; Conflict
        where somebody was faster."""
        bucket = await self._open()
        key, raw = _key(flow, number), msgspec.json.encode(edit)
        try:
            if not etag:
                return str(await bucket.put(key, raw))
            if etag == NO_EDIT:
                return str(await bucket.create(key, raw))
            return str(await bucket.update(key, raw, int(etag)))
        except Conflict as error:
            raise edited_meanwhile(flow, number) from error

    async def revert(self, flow: str, number: int, etag: str) -> None:
        """Forgets it."""
        bucket = await self._open()
        try:
            await bucket.delete(_key(flow, number), int(etag) if etag not in ("", NO_EDIT) else None)
        except Conflict as error:
            raise edited_meanwhile(flow, number) from error

    async def forget(self, flow: str, numbers: Sequence[int]) -> None:
        """The letters are gone."""
        bucket = await self._open()
        wanted = {_key(flow, number) for number in numbers}
        known = [key for key in await bucket.keys(f"{flow}.*") if key in wanted]
        for at in range(0, len(known), DELETED_AT_ONCE):
            await asyncio.gather(*(bucket.purge(key) for key in known[at : at + DELETED_AT_ONCE]))

    async def _open(self) -> KvBucket:
        async with self._opening:
            if self._bucket is None:
                name = bucket_names.edit_bucket(self.workspace)
                self._bucket = await KvBucket.open(self.connection, name, ttl_s=self.ttl_s, guard=self.guard)
            return self._bucket


def _key(flow: str, number: int) -> str:
    return f"{flow}.{number}"


def edited(
    request: dead_letter_pb2.EditDeadLetterRequest, letter: Letter, before: LetterEdit | None, editor: str, now: float
) -> LetterEdit | None:
    """The letter's edit as a person wants it; None for none. InvalidInput for what a step could not get."""
    changes = request.HasField("body") or request.HasField("content_type") or bool(request.headers)
    if request.revert == changes:
        raise InvalidInput.at(
            "revert",
            request.revert,
            "says to forget the edit and to change it" if changes else "is not set, and nothing is changed",
            next_step="Give body, content_type or headers, or revert alone",
        )
    if request.revert:
        return None
    original = letter.content.original
    body, content_type = original.body, original.content_type
    headers = dict(original.headers)
    if before is not None:
        body, content_type, headers = before.body, before.content_type, before.headers
    body = request.body if request.HasField("body") else body
    content_type = request.content_type if request.HasField("content_type") else content_type
    headers = changed_headers(headers, request.headers)
    check_message(body, content_type, headers)
    return LetterEdit(original.id, letter.content.at_unix_ns, body, content_type, headers, editor, now)


def edited_meanwhile(flow: str, number: int) -> Conflict:
    return Conflict(
        f"dead letter {number} of flow {flow!r} was edited meanwhile",
        reason="ETAG_MISMATCH",
        next_step=f"Read it again: headrace dead-letters show {flow} {number}",
    )
