"""The input of a call, as its function reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from headrace.model.attachments import LOADED_BYTES
from headrace.sdk.attachments import (
    BODY_TOO_LARGE,
    NO_ATTACHMENTS,
    Attachment,
    Attachments,
    ChunkStream,
    Transfers,
    chunks_of,
    reachable,
    waited,
)
from headrace.sdk.body import body_decoder
from headrace.sdk.errors import ComponentError

_decode_json = body_decoder(Any)


class CallInput(Protocol):
    """The fields of `component/v1` Input that a call reads."""

    call: int
    body: bytes
    content_type: str
    message_id: str
    execution_id: str
    attempt: int
    wants_reply: bool
    timeout_ms: int
    traceparent: str
    baggage: str

    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def passthrough(self) -> Sequence[Any]: ...
    @property
    def snapshot(self) -> Any: ...
    @property
    def attachments(self) -> Sequence[Any]: ...


class CarriesBytes(Protocol):
    """What knows how bytes of attachments come; the scope of a step."""

    transfers: Transfers | None


class EarlierOutput:
    """What an earlier step emitted on the way to this message, as it emitted it. Reading is all it offers."""

    __slots__ = ("_call", "_scope", "_source")

    def __init__(self, source: Any, scope: CarriesBytes, call: int) -> None:
        self._source = source
        self._scope, self._call = scope, call

    @property
    def step(self) -> str:
        return str(self._source.step)

    @property
    def body(self) -> bytes:
        """ComponentError BODY_NOT_LOADED where it went by reference: `read` and `stream` have it."""
        if self._source.attachments and self._large is not None:
            raise ComponentError("BODY_NOT_LOADED", f"the output of {self.step} goes by reference: use read()")
        return bytes(self._source.body)

    @property
    def attachments(self) -> Attachments:
        """Files that went with it."""
        given = self._source.attachments
        return Attachments(Attachment(item, self._scope.transfers, self._call) for item in given if not item.is_body)

    @property
    def _large(self) -> Attachment | None:
        return _body_of(self._source, self._scope, self._call)

    def stream(self) -> ChunkStream:
        """The body, of any size, in chunks."""
        large = self._large
        return large.stream() if large is not None else _small_stream(self._source.body, self._scope)

    def read(self, limit: int = LOADED_BYTES) -> Any:
        """The body, of any size up to `limit`: `await ctx.steps["price"].read()`."""
        large = self._large
        return large.read(limit) if large is not None else _small(self._source.body, self._scope)

    @property
    def content_type(self) -> str:
        return str(self._source.content_type)

    @property
    def headers(self) -> dict[str, str]:
        return dict(self._source.headers)

    def json(self) -> Any:
        """The body decoded; UndecodableInput if it is not JSON."""
        return _decode_json(self.body)


class Message:
    """The input of a call. Reading is all it offers; `headers` is a copy made when asked for."""

    __slots__ = ("_headers", "_input", "_loaded", "_scope")

    def __init__(self, source: CallInput, scope: CarriesBytes) -> None:
        self._input = source
        self._scope = scope
        self._headers: dict[str, str] | None = None
        self._loaded: bytes | None = None

    @property
    def id(self) -> str:
        """The same for every attempt: fit for an idempotency token."""
        return self._input.message_id

    @property
    def execution_id(self) -> str:
        return self._input.execution_id

    @property
    def headers(self) -> dict[str, str]:
        """Lower-case keys."""
        if self._headers is None:
            given = self._input.headers
            # A third of the time that dict(...) takes for a protobuf map.
            self._headers = {name: given[name] for name in given}
        return self._headers

    @property
    def body(self) -> bytes:
        """Where it is larger than 512 KiB it is there only if the function takes it as a value; ComponentError
        BODY_NOT_LOADED else: `stream` and `read` have it."""
        if self._loaded is not None:
            return self._loaded
        if self._input.attachments and self._large is not None:
            text = f"the body has {self.size} bytes and was not loaded: use message.stream() or message.read()"
            raise ComponentError("BODY_NOT_LOADED", text)
        return self._input.body

    @property
    def size(self) -> int:
        """Bytes of the body."""
        large = self._large
        return len(self._input.body) if large is None else large.size

    @property
    def attachments(self) -> Attachments:
        """Files that came with the message: `ctx.message.attachments["cat.jpg"]`, in the order in which they came."""
        given = self._input.attachments
        if not given:
            return NO_ATTACHMENTS
        transfers, call = self._scope.transfers, self._input.call
        return Attachments(Attachment(item, transfers, call) for item in given if not item.is_body)

    @property
    def _large(self) -> Attachment | None:
        return _body_of(self._input, self._scope, self._input.call)

    def as_attachment(self) -> Attachment | None:
        """A body above 512 KiB as something to pass on as it is: `ctx.emit(ctx.message.as_attachment())`; else None."""
        return self._large

    def stream(self) -> ChunkStream:
        """The body, of any size, in chunks: `async for chunk in ctx.message.stream()`."""
        large = self._large
        return large.stream() if large is not None else _small_stream(self._input.body, self._scope)

    def read(self, limit: int = LOADED_BYTES) -> Any:
        """The body, of any size up to `limit` (16 MiB): `await ctx.message.read()`; in a plain function the bytes."""
        large = self._large
        return large.read(limit) if large is not None else _small(self._input.body, self._scope)

    async def load(self) -> bytes:
        """Loads a large body for a function that takes it as a value; ComponentError BODY_TOO_LARGE past 16 MiB."""
        large = self._large
        if large is None:
            return self._input.body
        if large.size > LOADED_BYTES:
            text = f"the body has {large.size} bytes; at most {LOADED_BYTES} are loaded for a function: take no value, "
            raise ComponentError(BODY_TOO_LARGE, text + "and read ctx.message.stream()", status=413)
        self._loaded = b"".join([chunk async for chunk in large.stream()])
        return self._loaded

    @property
    def content_type(self) -> str:
        return self._input.content_type

    @property
    def attempt(self) -> int:
        """1 for the first attempt."""
        return self._input.attempt

    @property
    def wants_reply(self) -> bool:
        """True when a caller waits for `ctx.reply`."""
        return self._input.wants_reply

    @property
    def traceparent(self) -> str:
        """W3C trace context of this attempt; the parent for spans of the function's own. Empty where nothing is."""
        return self._input.traceparent

    @property
    def baggage(self) -> str:
        """W3C baggage that came with the request that began it; empty where there was none."""
        return self._input.baggage


def _body_of(source: Any, scope: CarriesBytes, call: int) -> Attachment | None:
    """The body of what names attachments, where it is one of them."""
    return next((Attachment(item, scope.transfers, call) for item in source.attachments if item.is_body), None)


def _small_stream(body: bytes, scope: CarriesBytes) -> ChunkStream:
    return ChunkStream(chunks_of(body), reachable(scope.transfers).loop)


def _small(body: bytes, scope: CarriesBytes) -> Any:
    return waited(_same(body), reachable(scope.transfers).loop)


async def _same(body: bytes) -> bytes:
    return body
