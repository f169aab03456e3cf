"""What a function sees of its call: the message, the configuration, and how to emit, reply and log.

`emit` and `reply` act when they are called and return something that may be awaited, so that they work in
plain functions too, without `await`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from headrace.api.attachment.v1 import attachment_pb2
from headrace.api.component.v1 import component_pb2
from headrace.model.attachments import clean_name, clean_type
from headrace.model.limits import MAX_BODY_BYTES, MAX_OUTPUT_BYTES, MAX_OUTPUTS
from headrace.model.step_snapshot import MAX_SNAPSHOT_BYTES
from headrace.sdk.attachments import (
    Attachment,
    Source,
    Transfers,
    begun,
    chunks_of,
    reachable,
    reference_of,
    references_of,
    waited,
)
from headrace.sdk.body import JSON, UnencodableOutput, body_decoder, encode_body
from headrace.sdk.errors import OUTPUT_REFUSED, SNAPSHOT_REFUSED, ComponentError
from headrace.sdk.log import ComponentLog
from headrace.sdk.message import CallInput, EarlierOutput, Message

MAX_KEY_CHARACTERS = 256
_decode_json = body_decoder(Any)


class EventSink(Protocol):
    """Where a call's events go."""

    def data(self, call: int, body: bytes, content_type: str, headers: Mapping[str, str] | None, key: str) -> None: ...
    def reply(
        self, call: int, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None
    ) -> None: ...
    def error(self, call: int, code: str, message: str, retryable: bool, status: int) -> None: ...
    def rebound(self, call: int, reason: str, delay_ms: int) -> None: ...
    def snapshot(self, call: int, json: str, merge: bool, if_revision: int | None) -> None: ...
    def end(self, call: int, started_ns: int, ended_ns: int) -> None: ...
    def output(self, call: int, emit: component_pb2.Emit) -> None: ...
    def answer(self, call: int, reply: component_pb2.ReplyEmit) -> None: ...
    def done(self, call: int, body: bytes | None, content_type: str, started_ns: int, ended_ns: int) -> None:
        """Of a call that had no event before: what the function returned, if anything, as an output, and the end."""


@dataclass(frozen=True, slots=True)
class StepIdentity:
    """Where the component runs; for logs and idempotency tokens. Empty in the test harness unless given."""

    workspace: str = ""
    flow: str = ""
    step: str = ""
    version: int = 0
    deployment: int = 0
    component: str = ""
    revision: str = ""
    instance: str = ""


class Snapshot:
    """What the step keeps between messages; of a step with `key` for the message's key. Seen as it was when the call
    began, with what the call itself has saved since. Saved once the call has ended well."""

    __slots__ = ("_call", "_json", "_revision", "_sink")

    def __init__(self, source: CallInput, sink: EventSink) -> None:
        kept = source.snapshot
        self._json, self._revision = kept.json or "null", int(kept.revision)
        self._call, self._sink = source.call, sink

    @property
    def value(self) -> Any:
        """None while nothing is kept."""
        return _decode_json(self._json.encode())

    @property
    def revision(self) -> int:
        """Counts saves; 0 while nothing is kept."""
        return self._revision

    def replace(self, value: Any, *, if_unchanged: bool = False) -> Awaitable[None]:
        """Keeps this value, at most 64 KiB as JSON. With `if_unchanged` the call fails with SNAPSHOT_CONFLICT, and is
        tried again, if another call has saved since this one began."""
        return self._save(value, False, if_unchanged)

    def merge(self, fields: Mapping[str, Any], *, if_unchanged: bool = False) -> Awaitable[None]:
        """Keeps these fields beside those kept already (the first level only)."""
        return self._save(dict(fields), True, if_unchanged)

    def _save(self, value: Any, merge: bool, if_unchanged: bool) -> Awaitable[None]:
        try:
            raw = encode_body(value, JSON)[0]
        except UnencodableOutput as error:
            raise ComponentError(SNAPSHOT_REFUSED, str(error)) from error
        if len(raw) > MAX_SNAPSHOT_BYTES:
            raise ComponentError(SNAPSHOT_REFUSED, f"a snapshot of {len(raw)} bytes, more than {MAX_SNAPSHOT_BYTES}")
        self._sink.snapshot(self._call, raw.decode(), merge, self._revision if if_unchanged else None)
        before = self.value if merge else None
        self._json = encode_body({**before, **value}, JSON)[0].decode() if isinstance(before, dict) else raw.decode()
        self._revision += 1
        return DONE


class _Done:
    """Awaitable that is over already."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


DONE = _Done()
NO_CREDENTIALS: Mapping[str, Any] = MappingProxyType({})


@dataclass(slots=True)
class StepScope:
    """What all calls of a step share."""

    config: dict[str, Any]
    step: StepIdentity
    draining: asyncio.Event
    log: ComponentLog
    credentials: Mapping[str, Any] = field(default_factory=lambda: NO_CREDENTIALS)
    startup_result: Any = None
    """What the startup hook returned; set for the shutdown hook."""
    transfers: Transfers | None = None
    """How bytes of attachments come and go; None before the sidecar has opened its stream for them."""
    dry_run: bool = False


class Context:
    """One call, as its function sees it."""

    __slots__ = (
        "__weakref__",
        "_emitted",
        "_emitted_bytes",
        "_message",
        "_replied",
        "_scope",
        "_sink",
        "_snapshot",
        "call",
    )

    def __init__(self, scope: StepScope, source: CallInput, sink: EventSink) -> None:
        self._scope = scope
        self._sink = sink
        self._emitted = 0
        self._emitted_bytes = 0
        self._replied = False
        self._message = Message(source, scope)
        self._snapshot: Snapshot | None = None
        self.call = source.call

    @property
    def has_spoken(self) -> bool:
        """Whether the call may have had an event."""
        return self._emitted > 0 or self._replied or self._snapshot is not None

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of the step, as written in the flow."""
        return self._scope.config

    @property
    def startup_result(self) -> Any:
        """In the shutdown hook: what the startup hook returned; None where it failed, and everywhere else."""
        return self._scope.startup_result

    @property
    def credentials(self) -> Mapping[str, Any]:
        """Fields of the credential that the step names, as they are now: they may be renewed while calls run. Empty
        where it names none. The mesh masks them in logs and errors; keep them out of messages yourself."""
        return self._scope.credentials

    @property
    def dry_run(self) -> bool:
        """True in `headrace step run`: leave effects outside (a row, a payment, a mail) alone. What is emitted, replied
        or saved is shown to a person and goes nowhere else."""
        return self._scope.dry_run

    @property
    def message(self) -> Message:
        return self._message

    @property
    def idempotency_key(self) -> str:
        """For effects outside the mesh (a row, a payment): the same at every attempt and redelivery of this message,
        on whatever instance, and no other message's. It is `message.id`; a replayed or moved message has its own."""
        return self._message.id

    @property
    def step(self) -> StepIdentity:
        return self._scope.step

    @property
    def snapshot(self) -> Snapshot:
        """What the step keeps between messages: `ctx.snapshot.value`, `await ctx.snapshot.merge({"since": now})`."""
        if self._snapshot is None:
            self._snapshot = Snapshot(self._message._input, self._sink)
        return self._snapshot

    @property
    def steps(self) -> dict[str, EarlierOutput]:
        """What the steps before have emitted on the way to this message, by step: `ctx.steps["price"].json()`. Empty
        unless the flow says `passthrough: true`."""
        source, scope = self._message._input, self._scope
        return {item.step: EarlierOutput(item, scope, source.call) for item in source.passthrough}

    @property
    def draining(self) -> asyncio.Event:
        """Set when the step stops taking work; a listener then stops reading its source."""
        return self._scope.draining

    @property
    def log(self) -> ComponentLog:
        """`ctx.log.info("priced", sku=sku)`; each line carries message and execution id."""
        message = self._message
        return self._scope.log.bound(message.execution_id, message.id, message.traceparent)

    def emit(
        self,
        value: Any,
        *,
        headers: Mapping[str, str] | None = None,
        key: str = "",
        content_type: str = "",
        source_id: str = "",
        attachments: Iterable[Attachment] = (),
    ) -> Awaitable[None]:
        """Sends one message to each receiver of the step; also after the function returned (a late emit).

        `key` names the output where the order of emission is not fixed, so that a repeated attempt repeats
        its ids. ComponentError OUTPUT_REFUSED if the value has no JSON, and past 1000 outputs or 32 MiB of one input.
        A body above 512 KiB goes by reference (at most 100 MB; awaiting it waits until it is stored, which the end of
        the call does anyhow). `attachments` are those that came with the message or that `attach` made; an Attachment
        as `value` becomes the body. Neither goes with a late emit.
        `source_id` is for listeners only.
        """
        if source_id:
            raise ComponentError(OUTPUT_REFUSED, "source_id is for listeners; a call's outputs use key")
        if len(key) > MAX_KEY_CHARACTERS:
            raise ComponentError(OUTPUT_REFUSED, f"key has {len(key)} characters, at most {MAX_KEY_CHARACTERS}")
        self._emitted += 1
        if self._emitted > MAX_OUTPUTS:
            raise ComponentError(OUTPUT_REFUSED, f"more than {MAX_OUTPUTS} outputs for one input")
        if attachments or type(value) is Attachment:
            return self._emit_attached(value, headers, key, content_type, attachments)
        body, content_type = encoded(value, content_type)
        if len(body) > MAX_BODY_BYTES:
            return self._emit_attached(body, headers, key, content_type, ())
        self._emitted_bytes += len(body)
        if self._emitted_bytes > MAX_OUTPUT_BYTES:
            raise ComponentError(OUTPUT_REFUSED, f"more than {MAX_OUTPUT_BYTES} bytes of outputs for one input")
        self._sink.data(self.call, body, content_type, headers, key)
        return DONE

    def attach(self, name: str, source: Source, *, content_type: str = "") -> Any:
        """Uploads bytes that are to go with outputs of this call: `file = await ctx.attach("cat.jpg", source)`, then
        `await ctx.emit(value, attachments=[file])`. In a plain function it returns the Attachment itself.

        `source`: bytes, text, a pathlib.Path, an open binary file, or chunks (also async), at most 100 MB. What no
        output names is collected. ComponentError ATTACHMENT_TOO_LARGE, or what the broker's trouble is (retryable).
        """
        transfers = reachable(self._scope.transfers)
        given = attachment_pb2.Attachment(name=clean_name(str(name)), content_type=clean_type(content_type))
        return waited(self._attach(transfers, given, source), transfers.loop)

    async def _attach(self, transfers: Transfers, given: attachment_pb2.Attachment, source: Source) -> Attachment:
        number = transfers.next_upload()
        stored = await transfers.upload(number, self.call, given, chunks_of(source))
        stored.upload = number
        return Attachment(stored, transfers, self.call)

    def _emit_attached(
        self,
        value: Any,
        headers: Mapping[str, str] | None,
        key: str,
        content_type: str,
        attachments: Iterable[Attachment],
    ) -> Awaitable[None]:
        body, content_type, references, uploaded = self.by_reference(value, content_type, attachments)
        self._emitted_bytes += len(body)
        if self._emitted_bytes > MAX_OUTPUT_BYTES:
            raise ComponentError(OUTPUT_REFUSED, f"more than {MAX_OUTPUT_BYTES} bytes of outputs for one input")
        self._sink.output(self.call, made_emit(body, content_type, headers, key, references))
        return uploaded

    def by_reference(
        self, value: Any, content_type: str, attachments: Iterable[Attachment] = ()
    ) -> tuple[bytes, str, list[attachment_pb2.Attachment], Awaitable[None]]:
        """Body, content type, references and what may be awaited of an output that has some; a large body's upload is
        begun."""
        references = references_of(attachments)
        if type(value) is Attachment:
            references.append(reference_of(value, is_body=True))
            return b"", content_type or value.content_type, references, DONE
        body, content_type = encoded(value, content_type)
        if len(body) <= MAX_BODY_BYTES:
            return body, content_type, references, DONE
        transfers = self._scope.transfers
        if transfers is None:
            raise ComponentError(OUTPUT_REFUSED, f"a body of {len(body)} bytes, more than {MAX_BODY_BYTES}")
        number = transfers.next_upload()
        given = attachment_pb2.Attachment(upload=number, content_type=content_type, is_body=True)
        references.append(given)
        work = transfers.upload(number, self.call, given, chunks_of(body))
        return b"", content_type, references, begun(work, transfers.loop)

    def reply(
        self, value: Any = b"", *, status: int = 200, headers: Mapping[str, str] | None = None, content_type: str = ""
    ) -> Awaitable[None]:
        """Answers the waiting caller (HTTP `status`, 200 to 599); nothing happens where nobody waits."""
        if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 599:
            raise ComponentError(OUTPUT_REFUSED, f"reply status {status!r} is not from 200 to 599")
        self._replied = True
        if type(value) is Attachment:
            return self._reply_attached(value, status, headers, content_type)
        body, content_type = encoded(value, content_type)
        if len(body) > MAX_BODY_BYTES:
            return self._reply_attached(body, status, headers, content_type)
        self._sink.reply(self.call, status, body, content_type, headers)
        return DONE

    def _reply_attached(
        self, value: Any, status: int, headers: Mapping[str, str] | None, content_type: str
    ) -> Awaitable[None]:
        _, content_type, references, uploaded = self.by_reference(value, content_type)
        try:
            reply = component_pb2.ReplyEmit(
                status=status, content_type=content_type, headers=headers, large_body=references[0]
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise ComponentError(OUTPUT_REFUSED, f"content type and headers must be text: {error}") from error
        self._sink.answer(self.call, reply)
        return uploaded


def made_emit(
    body: bytes,
    content_type: str,
    headers: Mapping[str, str] | None,
    key: str,
    references: Iterable[attachment_pb2.Attachment],
) -> component_pb2.Emit:
    """An output of the contract; ComponentError OUTPUT_REFUSED where something that must be text is not."""
    try:
        return component_pb2.Emit(
            body=body, content_type=content_type, headers=headers, key=key, attachments=references
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ComponentError(OUTPUT_REFUSED, f"content type, headers and key must be text: {error}") from error


def encoded(value: Any, content_type: str) -> tuple[bytes, str]:
    """Body (of any size) and content type; ComponentError OUTPUT_REFUSED, never retried, if there is none."""
    try:
        return encode_body(value, content_type)
    except UnencodableOutput as error:
        raise ComponentError(OUTPUT_REFUSED, str(error)) from error


_CURRENT: ContextVar[Context] = ContextVar("headrace_context")


def current_context() -> Context:
    """The Context of the call that is running; LookupError outside of one."""
    return _CURRENT.get()
