"""Bytes of attachments between the object store and the component: its `Transfer` stream, seen from the sidecar.

Each transfer is a task that holds a chunk or two; a component that does not read on, or sends more than it was granted,
waits or fails for itself alone. What calls upload is looked up when they end (`attached_outputs`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.edge.structured_log import get_logger
from headrace.model.attachments import CHUNK_BYTES, clean_name, clean_type
from headrace.model.errors import HeadraceError, Unavailable

if TYPE_CHECKING:
    from headrace.api.attachment.v1.attachment_pb2 import Attachment
    from headrace.edge.attachment_store import AttachmentStore, AttachmentUpload, Filing

log = get_logger(__name__)

MAX_AT_WORK = 16
"""Transfers that move bytes at once; more wait for a place."""
MAX_OPEN = 1_000
MAX_GRANTED = 8
UPLOAD_CHUNKS = 4
"""Chunks of an upload that may be on their way or wait here."""
KEPT_OF_LISTENER = 256
LOST = ("TRANSFER_LOST", "the component is gone, or ended its stream")


class TransferFailed(Exception):
    """Why a transfer, or an output that needs it, came to nothing."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code, self.message, self.retryable = code, message, retryable


@dataclass(slots=True, eq=False)
class _Open:
    """One transfer."""

    task: asyncio.Task[None] | None = None
    credit: int = 0
    come: deque[Any] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        await self.arrived.wait()
        self.arrived.clear()


@dataclass(slots=True, eq=False)
class Upload:
    """What a call uploads: `stored` has the reference, or TransferFailed."""

    call: int
    stored: asyncio.Future[Attachment]


class Transfers:
    """`references_of` gives what came with the input of a running call, None where there is no such call; `filing_of`
    how an upload of a call is filed (0: of a listener). `tasks` owns everything that runs here."""

    def __init__(
        self,
        flow: str,
        store: Callable[[], Awaitable[AttachmentStore]],
        references_of: Callable[[int], list[Attachment] | None],
        filing_of: Callable[[int], Filing | None],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._flow = flow
        self._store = store
        self._references_of, self._filing_of = references_of, filing_of
        self._tasks = tasks
        self._places = asyncio.Semaphore(MAX_AT_WORK)
        self._run: asyncio.Task[None] | None = None
        self._open: dict[int, _Open] = {}
        self._uploads: dict[int, Upload] = {}

    def component_ready(self, call: Any) -> None:
        """`call` is the component's Transfer stream (grpc.aio stream-stream)."""
        self.component_lost()
        self._run = self._tasks.create_task(self._serve(call), name="transfers")

    def component_lost(self) -> None:
        """What is open fails."""
        if self._run is not None:
            self._run.cancel()
            self._run = None

    close = component_lost

    def upload(self, call: int, number: int) -> Upload | None:
        """An upload that the call has begun, or will have begun as soon as its frames are read."""
        found = self._uploads.get(number)
        if found is None and self._run is not None and len(self._uploads) < MAX_OPEN:
            found = self._uploads[number] = self._new(call)
        return found if found is not None and found.call == call else None

    async def put(self, call: int, body: bytes) -> Attachment:
        """Stores a body that the sidecar has."""
        filing = self._filing_of(call)
        if filing is None:
            raise TransferFailed(*LOST, retryable=True)
        upload = (await self._store()).new_upload()
        await upload.write(body)
        return await upload.finish(self._flow, filing, is_body=True)

    async def keep(self, identity: str, keep_s: float) -> None:
        """As `AttachmentStore.keep`, of this flow's."""
        await (await self._store()).keep(self._flow, identity, keep_s)

    def forget(self, call: int) -> None:
        """The call is over, and its outputs were seen to: what it still uploads is of no use."""
        for number in [number for number, upload in self._uploads.items() if upload.call == call]:
            upload = self._uploads.pop(number)
            open_ = self._open.get(number)
            if not upload.stored.done():
                upload.stored.cancel()
                if open_ is not None and open_.task is not None:
                    open_.task.cancel()

    def _prune(self) -> None:
        """Forgets what calls have uploaded, or begun to, and never named; and what a listener has."""
        over = {upload.call for upload in self._uploads.values() if self._references_of(upload.call) is None}
        for call in over - {0}:
            self.forget(call)
        done = [number for number, upload in self._uploads.items() if not upload.call and upload.stored.done()]
        for number in done[:-KEPT_OF_LISTENER]:
            del self._uploads[number]

    def _new(self, call: int) -> Upload:
        stored: asyncio.Future[Attachment] = asyncio.get_running_loop().create_future()
        stored.add_done_callback(_seen)
        return Upload(call, stored)

    async def _serve(self, call: Any) -> None:
        import grpc

        try:
            writer = _Writer(call)
            while (message := await call.read()) is not grpc.aio.EOF:
                self._take(message, writer)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            log.debug("the transfer stream ended", error=repr(error))
        except Exception:
            log.exception("the transfer stream failed")
        finally:
            call.cancel()
            for open_ in list(self._open.values()):
                if open_.task is not None:
                    open_.task.cancel()
            self._open.clear()
            for upload in self._uploads.values():
                _fail(upload.stored, *LOST, retryable=True)
            self._uploads.clear()

    def _take(self, message: Any, writer: _Writer) -> None:
        number, kind = message.transfer, message.WhichOneof("kind")
        open_ = self._open.get(number)
        if open_ is None:
            if kind in ("download", "upload"):
                self._begin(number, kind, message, writer)
            return
        if kind == "more":
            open_.credit = min(open_.credit + message.more, MAX_GRANTED)
        elif kind == "cancel":
            if open_.task is not None:
                open_.task.cancel()
        else:
            open_.come.append(message)
        open_.arrived.set()

    def _begin(self, number: int, kind: str, message: Any, writer: _Writer) -> None:
        if len(self._open) >= MAX_OPEN:
            writer.fail_soon(self._tasks, number, "TOO_MANY_TRANSFERS", f"more than {MAX_OPEN} transfers are open")
            return
        if kind == "upload":
            self._prune()
        open_ = self._open[number] = _Open()
        work = self._download if kind == "download" else self._receive
        open_.task = self._tasks.create_task(self._carried(number, work, open_, message, writer), name="transfer")

    async def _carried(self, number: int, work: Any, open_: _Open, message: Any, writer: _Writer) -> None:
        """One transfer from its first message to its answer; nothing that it meets ends more than itself."""
        upload = self.upload(message.upload.call, number) if message.WhichOneof("kind") == "upload" else None
        problem = TransferFailed(*LOST, retryable=True)
        try:
            async with self._places:
                await work(number, open_, message, writer, upload)
            return
        except asyncio.CancelledError:
            if upload is not None:
                _fail(upload.stored, *LOST, retryable=True)
            raise
        except TransferFailed as error:
            problem = error
        except HeadraceError as error:
            problem = TransferFailed(error.reason, str(error), retryable=isinstance(error, Unavailable))
        except Exception as error:
            log.exception("a transfer failed")
            problem = TransferFailed("TRANSFER_FAILED", repr(error), retryable=True)
        finally:
            if self._open.get(number) is open_:
                del self._open[number]
        if upload is not None:
            _fail(upload.stored, problem.code, problem.message, retryable=problem.retryable)
        await writer.fail(number, problem.code, problem.message, retryable=problem.retryable)

    async def _download(self, number: int, open_: _Open, message: Any, writer: _Writer, _: None) -> None:
        asked = message.download
        references = self._references_of(asked.call)
        if references is None:
            raise TransferFailed("CALL_OVER", "attachments are read while their call runs; this one is over")
        attachment = next((item for item in references if item.id == asked.id), None)
        if attachment is None:
            raise TransferFailed("NO_SUCH_ATTACHMENT", f"no attachment {asked.id[:64]!r} came with the message")
        open_.credit += min(asked.chunks or 1, MAX_GRANTED)
        store = await self._store()
        async for chunk in store.read(self._flow, attachment, offset=asked.offset):
            while not open_.credit:
                await open_.wait()
            open_.credit -= 1
            await writer.chunk(number, chunk)
        await writer.end(number)

    async def _receive(self, number: int, open_: _Open, message: Any, writer: _Writer, upload: Upload | None) -> None:
        given = message.upload
        filing = self._filing_of(given.call)
        if upload is None or filing is None:
            raise TransferFailed("CALL_OVER", "attachments are made while their call runs; this one is over")
        bytes_in = (await self._store()).new_upload()
        try:
            await writer.taken(number, UPLOAD_CHUNKS)
            digest = await self._take_chunks(number, open_, bytes_in, writer)
            name = "" if given.is_body else clean_name(given.name)
            content_type = clean_type(given.content_type)
            stored = await bytes_in.finish(
                self._flow, filing, name=name, content_type=content_type, is_body=given.is_body, digest=digest
            )
        except BaseException:
            self._tasks.create_task(bytes_in.discard(), name="discard")
            raise
        if not upload.stored.done():
            upload.stored.set_result(stored)
        await writer.stored(number, stored)

    async def _take_chunks(self, number: int, open_: _Open, into: AttachmentUpload, writer: _Writer) -> str:
        """All chunks, as far as they were granted; answers the digest that the component says they have."""
        while True:
            while not open_.come:
                await open_.wait()
            if len(open_.come) > UPLOAD_CHUNKS + 1:
                raise TransferFailed("CREDIT_EXCEEDED", f"more than the {UPLOAD_CHUNKS} chunks that were granted")
            message = open_.come.popleft()
            if message.WhichOneof("kind") == "end":
                return str(message.end.digest)
            if len(message.chunk) > CHUNK_BYTES:
                raise TransferFailed("CHUNK_TOO_LARGE", f"a chunk of {len(message.chunk)} bytes, over {CHUNK_BYTES}")
            await into.write(message.chunk)
            await writer.taken(number, 1)


class _Writer:
    """The sidecar's answers on one stream, one at a time."""

    def __init__(self, call: Any) -> None:
        from headrace.api.component.v1 import component_pb2

        self._call = call
        self._lock = asyncio.Lock()
        self._pb = component_pb2

    async def chunk(self, number: int, chunk: bytes) -> None:
        await self._write(transfer=number, chunk=chunk)

    async def end(self, number: int) -> None:
        await self._write(transfer=number, end=self._pb.TransferEnd())

    async def taken(self, number: int, chunks: int) -> None:
        await self._write(transfer=number, taken=chunks)

    async def stored(self, number: int, attachment: Attachment) -> None:
        await self._write(transfer=number, stored=attachment)

    async def fail(self, number: int, code: str, message: str, *, retryable: bool = False) -> None:
        failure = self._pb.TransferFailure(code=code, message=message[:2000], retryable=retryable)
        await self._write(transfer=number, failure=failure)

    def fail_soon(self, tasks: asyncio.TaskGroup, number: int, code: str, message: str) -> None:
        tasks.create_task(self.fail(number, code, message, retryable=True), name="refused transfer")

    async def _write(self, **fields: Any) -> None:
        import grpc

        async with self._lock:
            try:
                await self._call.write(self._pb.TransferRequest(**fields))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
                log.debug("the component takes no more of its transfers", error=repr(error))


def _fail(stored: asyncio.Future[Attachment], code: str, message: str, *, retryable: bool) -> None:
    if not stored.done():
        stored.set_exception(TransferFailed(code, message, retryable=retryable))


def _seen(stored: asyncio.Future[Attachment]) -> None:
    if not stored.cancelled():
        stored.exception()
