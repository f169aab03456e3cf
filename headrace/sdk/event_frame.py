"""Events of calls, written straight into the answer frame under construction."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

from headrace.api.component.v1 import component_pb2, span_pb2
from headrace.sdk.errors import OUTPUT_REFUSED, ComponentError

# A frame is closed at this size, so that many large bodies of one turn stay below gRPC's message limit, and in
# the processor's caches.
FULL_FRAME_BYTES = 512 * 1024


class EventFrame:
    """An EventSink that fills one ProcessResponse. Not for use by two threads at once."""

    __slots__ = ("_add", "response", "size")

    def __init__(self) -> None:
        self.response = component_pb2.ProcessResponse()
        self._add = self.response.events.add
        self.size = 0

    def data(self, call: int, body: bytes, content_type: str, headers: Mapping[str, str] | None, key: str) -> None:
        emit = self._add(call=call).data
        try:
            emit.body = body
            emit.content_type = content_type
            if headers:
                copy_headers(headers, emit.headers)
            if key:
                emit.key = key
        except (ValueError, TypeError, AttributeError) as error:
            raise self._refused(error) from error
        self.size += len(body) + 128

    def reply(self, call: int, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None) -> None:
        reply = self._add(call=call).reply
        try:
            reply.status = status
            reply.body = body
            reply.content_type = content_type
            if headers:
                copy_headers(headers, reply.headers)
        except (ValueError, TypeError, AttributeError) as error:
            raise self._refused(error) from error
        self.size += len(body) + 128

    def output(self, call: int, emit: component_pb2.Emit) -> None:
        """An output that was made already: one with attachments."""
        self._add(call=call).data.CopyFrom(emit)
        self.size += emit.ByteSize() + 128

    def answer(self, call: int, reply: component_pb2.ReplyEmit) -> None:
        """A reply that was made already: one whose body is an attachment."""
        self._add(call=call).reply.CopyFrom(reply)
        self.size += reply.ByteSize() + 128

    def _refused(self, error: Exception) -> ComponentError:
        """Takes the half-made event out again."""
        del self.response.events[-1]
        return ComponentError(OUTPUT_REFUSED, f"content type, headers and key must be text: {error}")

    def error(self, call: int, code: str, message: str, retryable: bool, status: int) -> None:
        failure = self._add(call=call).error
        failure.code = code
        failure.message = message
        failure.retryable = retryable
        failure.status = status
        self.size += len(message) + 64

    def rebound(self, call: int, reason: str, delay_ms: int) -> None:
        rebound = self._add(call=call).rebound
        rebound.SetInParent()
        rebound.reason = reason
        rebound.delay_ms = delay_ms
        self.size += len(reason) + 32

    def snapshot(self, call: int, json: str, merge: bool, if_revision: int | None) -> None:
        snapshot = self._add(call=call).snapshot
        snapshot.json = json
        snapshot.merge = merge
        if if_revision is not None:
            snapshot.if_revision = if_revision
        self.size += len(json) + 32

    def end(self, call: int, started_ns: int, ended_ns: int) -> None:
        end = self._add(call=call).end
        end.started_at_mono_ns = started_ns
        end.ended_at_mono_ns = ended_ns
        self.size += 32

    def done(self, call: int, body: bytes | None, content_type: str, started_ns: int, ended_ns: int) -> None:
        """The end of a call that had no event before, with what it returned, if anything."""
        if body is not None:
            self.data(call, body, content_type, None, "")
        self.end(call, started_ns, ended_ns)

    def finished(self) -> component_pb2.ProcessResponse:
        """The frame as it is written; once, when nothing more is added."""
        return self.response

    def spans(self, spans: Sequence[span_pb2.Span]) -> None:
        """Of the component's own code."""
        self.response.spans.extend(spans)
        self.size += 1

    def pong(self, nonce: int) -> None:
        self.response.pong.nonce = nonce
        self.response.pong.SetInParent()
        self.size += 16


def copy_headers(headers: Mapping[str, str], target: MutableMapping[str, str]) -> None:
    """Into a protobuf map; TypeError or ValueError where one is not text. Half the time of `update`."""
    for name, value in headers.items():
        target[name] = value
