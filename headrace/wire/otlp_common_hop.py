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
_BYTE = tuple(bytes((number,)) for number in range(256))


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
        self._chunks = chunks
        span = "16s2s8s2s8sBQBQ"
        pieces = [f"{len(chunks[0])}s{span}{len(chunks[1])}s{span}{len(chunks[2])}s32s{len(chunks[3])}s32s"]
        pieces += [f"{len(chunk)}s{span}" for chunk in chunks[4:-1]]
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
        times: tuple[int, ...],
    ) -> bytes:
        """`times`: stored, read, entered, left, written, and acknowledged where the hop ends with that; rising."""
        chunks, first, last = self._chunks, process[:7], process[7]
        stored, read, entered, left, written = times[:5]
        values = (
            chunks[0], trace, _SPAN, queue, _PARENT, publish, _START, stored, _END, read,
            chunks[1], trace, _SPAN, process, _PARENT, queue, _START, read, _END, written,
            chunks[2], message, chunks[3], execution,
            chunks[4], trace, _SPAN, first + _BYTE[last ^ 1], _PARENT, process, _START, read, _END, entered,
            chunks[5], trace, _SPAN, first + _BYTE[last ^ 2], _PARENT, process, _START, entered, _END, left,
            chunks[6], trace, _SPAN, first + _BYTE[last ^ 3], _PARENT, process, _START, left, _END, written,
            chunks[7],
        )  # fmt: skip
        if not self.ends:
            return self._pack(*values)
        ack = first + _BYTE[last ^ 4]
        return self._pack(
            *values, trace, _SPAN, ack, _PARENT, process, _START, written, _END, times[5], chunks[8]
        )  # fmt: skip
