"""The spans of a hop that went as most do (first attempt, nothing amiss), packed at once.

What varies is ids and times, at places that are the same for all such hops of a step. So everything else is encoded
once, and a hop is one `pack`. Which hops are such, `otlp_spans` decides; what it makes one by one for the others must
be the very same bytes here (a test holds both beside each other).
"""

from __future__ import annotations

from struct import Struct

from headrace.wire.otlp_fields import length

_TRACE, _SPAN, _PARENT, _START, _END = b"\x0a\x10", b"\x12\x08", b"\x22\x08", 0x39, 0x41
_FIXED_BYTES = 56
"""Of a span's ids and times with their tags."""


class CommonHop:
    """Of one step. The tails are what follows ids and times in each span: of queue, process, sidecar-in, component,
    sidecar-out, and, where the hop ends with its acknowledgement, of that. `message` and `execution` are the beginnings
    of the attributes whose values (32 bytes each) the process span has before its tail."""

    __slots__ = ("_chunks", "_pack", "ends", "size", "spans")

    def __init__(self, queue: bytes, process: bytes, message: bytes, execution: bytes, *parts: bytes) -> None:
        self.spans = 2 + len(parts)
        self.ends = len(parts) == 4
        more = len(message) + len(execution) + 64
        queue_head, process_head, *heads = [
            b"\x12" + length(_FIXED_BYTES + size) + _TRACE
            for size in (len(queue), len(process) + more, *(len(tail) for tail in parts))
        ]
        chunks = [queue_head, queue + process_head, message, execution]
        tails = [process, *parts]
        chunks += [tail + head for tail, head in zip(tails, [*heads, b""], strict=True)]
        self._chunks = tuple(chunks)
        span, part = "16s2s8s2s8sBQBQ", "16s2s7sB2s8sBQBQ"
        pieces = [f"{len(chunks[0])}s{span}{len(chunks[1])}s{span}{len(chunks[2])}s32s{len(chunks[3])}s32s"]
        pieces += [f"{len(chunk)}s{part}" for chunk in chunks[4:-1]]
        packing = Struct(f"<{''.join(pieces)}{len(chunks[-1])}s")
        self._pack, self.size = packing.pack, packing.size

    def encode(
        self,
        trace: bytes,
        publish: bytes,
        queue: bytes,
        process: bytes,
        message: bytes,
        execution: bytes,
        stored: int,
        read: int,
        entered: int,
        left: int,
        written: int,
        ended: int,
    ) -> bytes:
        """Moments in Unix ns, rising; `ended` counts where the hop ends with its acknowledgement."""
        first, last = process[:7], process[7]
        if self.ends:
            c0, c1, c2, c3, c4, c5, c6, c7, c8 = self._chunks
            return self._pack(
                c0, trace, _SPAN, queue, _PARENT, publish, _START, stored, _END, read,
                c1, trace, _SPAN, process, _PARENT, queue, _START, read, _END, written, c2, message, c3, execution,
                c4, trace, _SPAN, first, last ^ 1, _PARENT, process, _START, read, _END, entered,
                c5, trace, _SPAN, first, last ^ 2, _PARENT, process, _START, entered, _END, left,
                c6, trace, _SPAN, first, last ^ 3, _PARENT, process, _START, left, _END, written,
                c7, trace, _SPAN, first, last ^ 4, _PARENT, process, _START, written, _END, ended, c8,
            )  # fmt: skip
        c0, c1, c2, c3, c4, c5, c6, c7 = self._chunks
        return self._pack(
            c0, trace, _SPAN, queue, _PARENT, publish, _START, stored, _END, read,
            c1, trace, _SPAN, process, _PARENT, queue, _START, read, _END, written, c2, message, c3, execution,
            c4, trace, _SPAN, first, last ^ 1, _PARENT, process, _START, read, _END, entered,
            c5, trace, _SPAN, first, last ^ 2, _PARENT, process, _START, entered, _END, left,
            c6, trace, _SPAN, first, last ^ 3, _PARENT, process, _START, left, _END, written, c7,
        )  # fmt: skip


class CommonPublish:
    """The span of such a hop's publish, which is another site's. `tail` ends with the beginning of the attribute whose
    value is the message's id."""

    __slots__ = ("_head", "_pack", "_tail", "size")

    def __init__(self, tail: bytes) -> None:
        self._head, self._tail = b"\x12" + length(_FIXED_BYTES + len(tail) + 32) + _TRACE, tail
        packing = Struct(f"<{len(self._head)}s16s2s8s2s8sBQBQ{len(tail)}s32s")
        self._pack, self.size = packing.pack, packing.size

    def encode(self, trace: bytes, span: bytes, parent: bytes, message: bytes, sent: int, stored: int) -> bytes:
        """Moments in Unix ns, rising."""
        return self._pack(
            self._head, trace, _SPAN, span, _PARENT, parent, _START, sent, _END, stored, self._tail, message
        )
