"""Attachments as a function sees them: what came with its message, and what it sends along.

Bytes come and go in chunks, so that neither needs memory for the whole. In an async function streams are read by
`async for` and calls are awaited; in a plain one streams are read by `for`, and calls return when they are done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Generator, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from headrace.api.attachment.v1 import attachment_pb2
from headrace.model.attachments import CHUNK_BYTES, LOADED_BYTES, MAX_ATTACHMENTS
from headrace.sdk.errors import OUTPUT_REFUSED, ComponentError

BODY_TOO_LARGE = "BODY_TOO_LARGE"

Source = bytes | bytearray | memoryview | str | Path | BinaryIO | Iterable[bytes] | AsyncIterable[bytes]
"""What an attachment can be made of: bytes, text, the path of a file, an open file, or chunks."""


class Transfers(Protocol):
    """How bytes come from the sidecar and go to it (or to a test)."""

    loop: asyncio.AbstractEventLoop

    def download(self, call: int, identity: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The bytes of an attachment of the call's input. ComponentError when they cannot be had."""

    def next_upload(self) -> int:
        """A number for an upload."""

    async def upload(
        self, number: int, call: int, given: attachment_pb2.Attachment, chunks: AsyncIterator[bytes]
    ) -> attachment_pb2.Attachment:
        """Returns when it is stored. `given` has name, content type and whether it is a body. ComponentError."""


class ChunkStream:
    """Bytes in chunks of at most 256 KiB: `async for chunk in stream`, in a plain function `for chunk in stream`."""

    def __init__(self, chunks: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._chunks: Any = chunks
        self._loop = loop

    def __aiter__(self) -> AsyncIterator[bytes]:
        chunks: AsyncIterator[bytes] = self._chunks
        return chunks

    def __iter__(self) -> Iterator[bytes]:
        try:
            while True:
                try:
                    yield asyncio.run_coroutine_threadsafe(anext(self._chunks), self._loop).result()
                except StopAsyncIteration:
                    return
        finally:
            asyncio.run_coroutine_threadsafe(self._chunks.aclose(), self._loop).result()


class Attachment:
    """Bytes that go with a message, by reference. Those of an input can be read while its call runs."""

    __slots__ = ("_call", "_reference", "_transfers")

    def __init__(self, reference: attachment_pb2.Attachment, transfers: Transfers | None, call: int) -> None:
        self._reference = reference
        self._transfers = transfers
        self._call = call

    @property
    def name(self) -> str:
        """File name; safe to save under. Empty for a body."""
        return self._reference.name

    @property
    def content_type(self) -> str:
        return self._reference.content_type

    @property
    def size(self) -> int:
        """Bytes."""
        return self._reference.size

    @property
    def digest(self) -> str:
        """`sha256:...` of its bytes; it is checked while they are read."""
        return self._reference.digest

    def stream(self, offset: int = 0) -> ChunkStream:
        """Its bytes from `offset` on. ComponentError ATTACHMENT_GONE or ATTACHMENT_DAMAGED, never retried, where they
        are not to be had."""
        transfers = reachable(self._transfers)
        return ChunkStream(transfers.download(self._call, self._reference.id, offset), transfers.loop)

    def read(self, limit: int = LOADED_BYTES) -> Any:
        """All of it: `await attachment.read()`; in a plain function the bytes themselves. ComponentError
        ATTACHMENT_TOO_LARGE where it has more than `limit` bytes (16 MiB)."""
        if self.size > limit:
            raise ComponentError(
                "ATTACHMENT_TOO_LARGE", f"{self.name or 'the body'} has {self.size} bytes, more than {limit}: stream it"
            )
        return waited(_joined(self.stream()), reachable(self._transfers).loop)

    def __repr__(self) -> str:
        return f"Attachment({self.name!r}, {self.content_type!r}, {self.size} bytes)"


class Attachments(Sequence[Attachment]):
    """What came with a message, in order: by place or by name, `ctx.message.attachments["cat.jpg"]`."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[Attachment] = ()) -> None:
        self._items = tuple(items)

    @property
    def names(self) -> list[str]:
        return [item.name for item in self._items]

    def get(self, name: str) -> Attachment | None:
        """The one of that name, or None."""
        return next((item for item in self._items if item.name == name), None)

    def __getitem__(self, place: Any) -> Any:
        if not isinstance(place, str):
            return self._items[place]
        found = self.get(place)
        if found is None:
            raise KeyError(f"no attachment {place!r}; there are {', '.join(map(repr, self.names)) or 'none'}")
        return found

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, value: object) -> bool:
        return self.get(value) is not None if isinstance(value, str) else value in self._items

    def __repr__(self) -> str:
        return f"Attachments({list(self._items)!r})"


NO_ATTACHMENTS = Attachments()


def reference_of(attachment: Any, *, is_body: bool = False) -> attachment_pb2.Attachment:
    """How an output names it; ComponentError OUTPUT_REFUSED for something else."""
    if not isinstance(attachment, Attachment):
        raise ComponentError(OUTPUT_REFUSED, f"{type(attachment).__name__} is no attachment: use ctx.attach(...)")
    reference = attachment_pb2.Attachment()
    reference.CopyFrom(attachment._reference)
    reference.is_body = is_body
    if is_body:
        reference.name = ""
    return reference


def references_of(attachments: Iterable[Any]) -> list[attachment_pb2.Attachment]:
    """As `reference_of`, for what goes with an output."""
    found = [reference_of(item) for item in attachments]
    if len(found) > MAX_ATTACHMENTS:
        raise ComponentError(OUTPUT_REFUSED, f"{len(found)} attachments, at most {MAX_ATTACHMENTS} go with a message")
    return found


def reachable(transfers: Transfers | None) -> Transfers:
    """ComponentError where the sidecar does not carry bytes."""
    if transfers is None:
        raise ComponentError("NO_TRANSFERS", "this sidecar carries no attachments", retryable=True)
    return transfers


def waited(work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
    """In a task: something to await. In a thread: its result."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run_coroutine_threadsafe(work, loop).result()
    return Started(loop.create_task(work))


def begun(work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
    """Begins it on the loop, from any thread; something to await where there is a task to do so."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        loop.call_soon_threadsafe(lambda: Started(loop.create_task(work)))
        return _NOTHING
    return Started(loop.create_task(work))


class Started:
    """Work that was begun; awaiting it gives its result. Not awaited it goes on all the same."""

    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        task.add_done_callback(_seen)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._task.__await__()


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


class _Nothing:
    """Awaitable that is over already."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


_NOTHING = _Nothing()


async def _joined(stream: ChunkStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def chunks_of(source: Source) -> AsyncIterator[bytes]:
    """A source in chunks of at most 256 KiB; files and plain iterables are read in a thread."""
    if isinstance(source, str):
        source = source.encode()
    if isinstance(source, Path):
        with await asyncio.to_thread(source.open, "rb") as file:
            async for chunk in chunks_of(file):
                yield chunk
    elif isinstance(source, (bytes, bytearray, memoryview)):
        async for chunk in _slices(source):
            yield chunk
    elif isinstance(source, AsyncIterable):
        async for part in source:
            async for chunk in _slices(part):
                yield chunk
    elif hasattr(source, "read"):
        while chunk := await asyncio.to_thread(source.read, CHUNK_BYTES):
            yield chunk
    elif isinstance(source, Iterable):
        parts: Iterator[bytes] = iter(source)
        while (more := await asyncio.to_thread(_next, parts)) is not None:
            async for chunk in _slices(more):
                yield chunk
    else:
        raise ComponentError(OUTPUT_REFUSED, f"{type(source).__name__} cannot become an attachment")


async def _slices(part: bytes | bytearray | memoryview) -> AsyncIterator[bytes]:
    view = memoryview(part)
    if len(view) <= CHUNK_BYTES:
        yield bytes(view)
        return
    for begin in range(0, len(view), CHUNK_BYTES):
        yield bytes(view[begin : begin + CHUNK_BYTES])


class Hashed:
    """Chunks as they pass by, and the digest of all of them."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._hash = sha256()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            self._hash.update(chunk)
            yield chunk

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def _next(parts: Iterator[bytes]) -> bytes | None:
    return next(parts, None)
