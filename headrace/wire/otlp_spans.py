"""Records of hops and stimuli as OTLP spans (`ExportTraceServiceRequest`), with little Python per span.

What is the same for all spans of a site (resource, names, kinds, attributes) is encoded once; a span is one `pack` of
its ids and times and a join. `docs/observability.md` says what the spans are; a differential test holds the bytes
against the protobuf classes of opentelemetry-proto.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError

from headrace.model import trace_context
from headrace.model.hop_record import ComponentSpan, Exportable, HopOutcome, HopRecord, ReplyPart, RootRecord, Site
from headrace.wire.otlp_fields import (
    SCHEMA_URL,
    Value,
    attribute,
    attributes,
    block,
    error_status,
    event,
    length,
    link,
    text,
)
from headrace.wire.otlp_sites import (
    ATTEMPT_ONE,
    CONSUMER,
    EXECUTION,
    INTERNAL,
    MESSAGE,
    MESSAGING,
    PRODUCER,
    SERVER,
    SiteBytes,
    span_tail,
)

SCOPE = "headrace"
MAX_UNIX_NS = (1 << 63) - 1

_HEAD = Struct("<2s16s2s8s2s8sBQBQ")
_ROOT_HEAD = Struct("<2s16s2s8sBQBQ")
_BYTE = tuple(bytes((number,)) for number in range(256))
_PROCESSED = HopOutcome.PROCESSED
_from_hex = bytes.fromhex
_SCOPE_FIELD = block(1, text(1, SCOPE))
_SCHEMA_FIELD = text(3, SCHEMA_URL)
_KIND_OF_ROOT = {"webhook": SERVER, "injected": SERVER, "tick": INTERNAL, "listener": CONSUMER}


class _Group:
    """Spans of one resource."""

    __slots__ = ("resource", "site", "size", "spans")

    def __init__(self, site: Site, resource: bytes) -> None:
        self.site = site  # held, so that its identity stays its own
        self.resource = resource
        self.spans: list[bytes] = []
        self.size = 0


class SpanEncoder:
    """Collects spans; `take` gives the request's bytes and begins anew."""

    def __init__(self) -> None:
        self._sites: dict[int, SiteBytes] = {}
        self._groups: dict[int, _Group] = {}
        self._place: Site | None = None
        self._sender: Site | None = None
        self._way: tuple[SiteBytes, _Group, _Group]
        """Of the newest common hop: most are alike."""
        self.spans = 0
        """Collected since the last `take`."""
        self.size = 0
        """Bytes of them, about."""

    def add(self, record: Exportable) -> None:
        """ValueError (and nothing added) for a record whose ids are no hexadecimal digits of the right number."""
        if isinstance(record, HopRecord):
            if not self._add_common_hop(record):
                self._add_hop(record)
        elif isinstance(record, RootRecord):
            self._add_root(record)
        else:
            self._add_component(record)

    def take(self) -> tuple[bytes, int]:
        """The bytes of an ExportTraceServiceRequest, and how many spans it holds."""
        parts: list[bytes] = []
        for group in self._groups.values():
            # Spans are copied once, here: lengths come before what they are of.
            scope_bytes = len(_SCOPE_FIELD) + group.size + len(_SCHEMA_FIELD)
            scope_head = b"\x12" + length(scope_bytes)
            whole = len(group.resource) + len(scope_head) + scope_bytes + len(_SCHEMA_FIELD)
            parts += (b"\x0a", length(whole), group.resource, scope_head, _SCOPE_FIELD)
            parts += group.spans
            parts += (_SCHEMA_FIELD, _SCHEMA_FIELD)
        spans, self.spans, self.size = self.spans, 0, 0
        self._groups.clear()
        self._place = self._sender = None
        return b"".join(parts), spans

    def _site(self, site: Site) -> SiteBytes:
        known = self._sites.get(id(site))
        if known is None:
            if len(self._sites) >= 1_000:
                self._sites.clear()
            known = self._sites[id(site)] = SiteBytes(site)
        return known

    def _group(self, site: Site) -> _Group:
        group = self._groups.get(id(site))
        if group is None:
            group = self._groups[id(site)] = _Group(site, self._site(site).resource)
        return group

    def _put(
        self,
        group: _Group,
        ids: tuple[bytes, bytes, bytes],
        start_ns: int,
        end_ns: int,
        tail: bytes,
        more: bytes = b"",
    ) -> None:
        """`ids`: trace, span, parent (empty: none). A negative duration becomes zero and says so."""
        if end_ns < start_ns:
            more += attribute("headrace.clock_skew_ns", start_ns - end_ns)
            start_ns = end_ns
        try:
            head = _head(ids, start_ns, end_ns)
        except StructError:  # a clock that is no clock
            head = _head(ids, min(max(start_ns, 0), MAX_UNIX_NS), min(max(end_ns, 0), MAX_UNIX_NS))
        encoded = b"\x12%b%b%b%b" % (length(len(head) + len(tail) + len(more)), head, tail, more)
        group.spans.append(encoded)
        group.size += len(encoded)
        self.spans += 1
        self.size += len(encoded)

    def _add_common_hop(self, record: HopRecord) -> bool:
        """The short way for what went as most does; False, and nothing added, for everything else."""
        (
            place, sender, trace_id, parent_id, span_id, _, message, execution, attempt, opens, delivered, in_doubt,
            outputs, replied, outcome, _, _, _, slot, sent_ns, stored_ns, read_ns, read_mono_ns, _, entered_ns, left_ns,
            written_ns, ended_ns, _, _, _,
        ) = record  # fmt: skip
        if not (attempt == 1 == delivered and outcome is _PROCESSED and opens and sender is not None):
            return False
        if in_doubt or slot >= 0 or not len(message) == len(execution) == 32 or len(parent_id) != 16:
            return False
        offset_ns = read_ns - read_mono_ns
        entered_ns += offset_ns
        left_ns += offset_ns
        written_ns += offset_ns
        ended_ns += offset_ns
        if not 0 < sent_ns <= stored_ns <= read_ns <= entered_ns <= left_ns <= written_ns <= ended_ns <= MAX_UNIX_NS:
            return False
        trace, span, parent, raw = _from_hex(trace_id), _from_hex(span_id), _from_hex(parent_id), _from_hex(message)
        # Of 32 and 16 characters blanks, which are left out, may be some.
        if not (len(trace) == len(raw) == 16 and len(span) == len(parent) == 8 and execution.isascii()):
            return False
        if place is not self._place or sender is not self._sender:
            self._place, self._sender = place, sender
            self._way = self._site(place), self._group(place), self._group(sender)
        site, group, senders = self._way
        sent, publish = message.encode(), raw[:8]
        common, published = site.common if outputs or replied else site.common_end, site.common_publish
        group.spans.append(
            common.encode(
                trace, publish, raw[4:12], span, sent, execution.encode(),
                stored_ns, read_ns, entered_ns, left_ns, written_ns, ended_ns,
            )
        )  # fmt: skip
        group.size += common.size
        senders.spans.append(published.encode(trace, publish, parent, sent, sent_ns, stored_ns))
        senders.size += published.size
        self.spans += common.spans + 1
        self.size += common.size + published.size
        return True

    def _add_hop(self, record: HopRecord) -> None:
        trace, span, parent = _ids(record.trace_id, record.span_id, record.parent_id)
        message = record.message_id
        site, group = self._site(record.site), self._group(record.site)
        read_ns = record.received_at_unix_ns
        offset_ns = read_ns - record.received_at_mono_ns
        entered_ns, left_ns = record.entered_at_mono_ns, record.left_at_mono_ns
        end_mono_ns = record.written_at_mono_ns or record.ended_at_mono_ns
        began_ns = read_ns if record.opens else offset_ns + record.began_at_mono_ns
        message_attribute = _id_attribute(MESSAGE, "messaging.message.id", message)
        before = parent
        if record.opens:
            before = self._put_way_in(record, group, trace, parent, message_attribute)
        elif len(message) == 32:
            before = bytes.fromhex(trace_context.publish_span_id(message))
        more = message_attribute + _id_attribute(EXECUTION, "headrace.execution", record.execution_id)
        more += ATTEMPT_ONE if _is_plain(record) else _particulars(record)
        # What varies comes before what does not, as in CommonHop.
        self._put(group, (trace, span, before), began_ns, offset_ns + end_mono_ns, more + site.process)
        first, last = span[:7], span[7]
        if entered_ns and left_ns:
            entered_at, left_at = offset_ns + entered_ns, offset_ns + left_ns
            self._put(group, (trace, first + _BYTE[last ^ 1], span), began_ns, entered_at, site.sidecar_in)
            self._put(group, (trace, first + _BYTE[last ^ 2], span), entered_at, left_at, site.component)
            if record.written_at_mono_ns:
                out_ns = offset_ns + record.written_at_mono_ns
                self._put(group, (trace, first + _BYTE[last ^ 3], span), left_at, out_ns, site.sidecar_out)
        if record.written_at_mono_ns and record.terminal:
            written_ns, ended_ns = offset_ns + record.written_at_mono_ns, offset_ns + record.ended_at_mono_ns
            self._put(group, (trace, first + _BYTE[last ^ 4], span), written_ns, ended_ns, site.ack)

    def _put_way_in(
        self, record: HopRecord, group: _Group, trace: bytes, parent: bytes, message_attribute: bytes
    ) -> bytes:
        """The spans of the input's publish and wait; answers the id of the latter."""
        site = self._site(record.site)
        message = record.message_id
        if len(message) != 32:
            return parent
        raw = bytes.fromhex(message)
        queue = raw[4:12] if record.delivered == 1 else _id_beside(record.span_id, 5)
        before = parent
        if record.sender is not None and record.sent_at_unix_ns:
            before = raw[:8]
            ids = (trace, before, parent)
            sent_ns, stored_ns = record.sent_at_unix_ns, record.stored_at_unix_ns
            self._put(self._group(record.sender), ids, sent_ns, stored_ns, site.publish_of, message_attribute)
        self._put(group, (trace, queue, before), record.stored_at_unix_ns, record.received_at_unix_ns, site.queue)
        return queue

    def _add_component(self, span: ComponentSpan) -> None:
        group = self._group(span.site)
        encoded = block(2, span.encoded)
        group.spans.append(encoded)
        group.size += len(encoded)
        self.spans += 1
        self.size += len(encoded)

    def _add_root(self, record: RootRecord) -> None:
        trace, span, parent = _ids(record.trace_id, record.span_id, record.parent_id)
        group = self._group(record.site)
        more = _id_attribute(EXECUTION, "headrace.execution", record.execution_id)
        pairs: dict[str, Value] = {"headrace.stimulus": record.kind}
        if record.status:
            pairs["http.response.status_code"] = record.status
        if record.kind == "webhook":
            method, _, route = record.name.partition(" ")
            pairs |= {"http.request.method": method, "http.route": route}
        if record.duplicate:
            pairs["headrace.duplicate"] = True
        if record.code:
            pairs["error.type"] = record.code
            more += error_status(record.problem or record.code)
        other = trace_context.parse_traceparent(record.link) if record.link else None
        if other is not None:
            more += link(bytes.fromhex(other.trace_id), bytes.fromhex(other.span_id))
        tail = span_tail(record.name, _KIND_OF_ROOT.get(record.kind, INTERNAL), "", pairs)
        self._put(group, (trace, span, parent), record.started_at_unix_ns, record.ended_at_unix_ns, tail, more)
        for number, (name, start_ns, end_ns) in enumerate(record.phases, 1):
            ids = (trace, span[:7] + _BYTE[span[7] ^ number], span)
            self._put(group, ids, start_ns, end_ns, span_tail(name, INTERNAL, name))
        if record.reply is not None:
            self._put_reply(record.reply, trace)

    def _put_reply(self, reply: ReplyPart, trace: bytes) -> None:
        sent: dict[str, Value] = {"messaging.operation.name": "reply", "messaging.operation.type": "send"}
        tail = span_tail(f"reply {reply.sender.step}", PRODUCER, "publish", MESSAGING | sent)
        ids = (trace, _id_beside(reply.parent_id, 6), bytes.fromhex(reply.parent_id))
        self._put(self._group(reply.sender), ids, reply.sent_at_unix_ns, reply.read_at_unix_ns, tail)


def _is_plain(record: HopRecord) -> bool:
    """Nothing to say but that it was processed."""
    common = record.attempt == 1 == record.delivered and record.outcome is HopOutcome.PROCESSED and record.slot < 0
    return common and not record.in_doubt


def _particulars(record: HopRecord) -> bytes:
    """Attributes, status and events of an attempt that is not a plain one."""
    pairs: dict[str, Value] = {"headrace.attempt": record.attempt}
    if record.delivered > 1:
        pairs["headrace.delivered"] = record.delivered
    if record.in_doubt:
        pairs["headrace.in_doubt"] = True
    if record.slot >= 0:
        pairs["messaging.destination.partition.id"] = str(record.slot)
    if record.outcome is HopOutcome.PROCESSED:
        return attributes(pairs)
    pairs["headrace.outcome"] = record.outcome.value
    if record.outcome is HopOutcome.DEAD_LETTERED:
        pairs["headrace.dead_letter"] = True
    what: dict[str, Value] = {"exception.type": record.code, "exception.message": record.problem}
    if record.outcome in (HopOutcome.RETRIED, HopOutcome.REBOUND):
        what["headrace.retry_after_ms"] = record.retry_after_ns // 1_000_000
    left_ns = record.left_at_mono_ns or record.ended_at_mono_ns
    at_ns = record.unix_of(left_ns)
    if not record.failed:
        return attributes(pairs) + event("rebound", at_ns, what)
    pairs["error.type"] = record.code
    problem = f"{record.code}: {record.problem}" if record.problem else record.code
    return attributes(pairs) + event("exception", at_ns, what) + error_status(problem)


def _head(ids: tuple[bytes, bytes, bytes], start_ns: int, end_ns: int) -> bytes:
    trace, span, parent = ids
    if parent:
        return _HEAD.pack(b"\x0a\x10", trace, b"\x12\x08", span, b"\x22\x08", parent, 0x39, start_ns, 0x41, end_ns)
    return _ROOT_HEAD.pack(b"\x0a\x10", trace, b"\x12\x08", span, 0x39, start_ns, 0x41, end_ns)


def _ids(trace_id: str, span_id: str, parent_id: str) -> tuple[bytes, bytes, bytes]:
    trace, span, parent = bytes.fromhex(trace_id), bytes.fromhex(span_id), bytes.fromhex(parent_id)
    if len(trace) != 16 or len(span) != 8 or len(parent) not in (0, 8):
        raise ValueError(f"ids of the wrong length: {trace_id!r}, {span_id!r}, {parent_id!r}")
    return trace, span, parent


def _id_beside(span_id: str, number: int) -> bytes:
    """The id of a span that goes with an attempt; 1 to 4 are those of its parts."""
    raw = bytes.fromhex(span_id)
    return raw[:7] + _BYTE[raw[7] ^ number]


def _id_attribute(prefix: bytes, key: str, value: str) -> bytes:
    if len(value) == 32 and value.isascii():
        return prefix + value.encode()
    return attribute(key, value) if value else b""
