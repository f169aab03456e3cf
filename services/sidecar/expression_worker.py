"""The process beside a sidecar that evaluates the expressions of its step's edges, compiled once.

A process of its own, since an expression is code that a person wrote: it may loop, recurse, match a regular
expression for ever or fill the memory, and none of that can be taken back from a thread. Here it costs the message
that it was evaluated for, and at worst this process.

Frames on standard input and output: four bytes of length, then msgpack. First the edges, then lists of jobs
`[number, body, content type, headers, message, passthrough]`; one list of answers `[number, error, bodies]` for each
frame or 5 ms. A body per edge: None (the condition does not hold), True (as it was emitted) or the mapped bytes.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from typing import Any, BinaryIO

import msgspec

from headrace.edge.parent_death import tie_to_parent
from headrace.wire.edge_program import CPU_LIMIT_S, EdgeProgram, TooLong

MEMORY_LIMIT_BYTES = 256 * 1024 * 1024
RECURSION_LIMIT = 5_000
"""Frames of Python, some eight for each level of an expression."""
FLUSH_EVERY_S = 0.005

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


def main() -> None:
    """Until standard input ends."""
    tie_to_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sidecar ends it, also where both have a terminal
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _too_long)
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    first = _read(source)
    if first is None:
        return
    program = EdgeProgram([tuple(edge) for edge in first])
    sys.setrecursionlimit(RECURSION_LIMIT)
    _write(sink, [])  # ready
    while (jobs := _read(source)) is not None:
        answers: list[Any] = []
        flushed = time.monotonic()
        for job in jobs:
            answers.append(_answer(program, job))
            if time.monotonic() - flushed > FLUSH_EVERY_S:
                _write(sink, answers)
                answers, flushed = [], time.monotonic()
        if answers:
            _write(sink, answers)


def _answer(program: EdgeProgram, job: list[Any]) -> tuple[int, str, list[Any] | None]:
    number, *message = job
    try:
        # Of processor time, so that a machine that has none to give is not held against the expression.
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
        try:
            return number, *program.route(*message)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except TooLong:
        return number, f"took more than {CPU_LIMIT_S:g} s of processor time", None


def _too_long(*_: object) -> None:
    raise TooLong


def _read(source: BinaryIO) -> Any:
    head = source.read(4)
    return _unpack(source.read(int.from_bytes(head, "little"))) if len(head) == 4 else None


def _write(sink: BinaryIO, value: Any) -> None:
    raw = _pack(value)
    sink.write(len(raw).to_bytes(4, "little") + raw)
    sink.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
