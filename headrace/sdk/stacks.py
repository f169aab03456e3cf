"""Where a component's calls and threads stand, for `headrace why`.

Two ways. While the event loop runs, `GetStacks` is answered from here, call by call. While it is blocked nothing of
Python's may get a turn, so a signal makes the interpreter's own handler (`faulthandler`, in C) append the stacks of
all threads to a file beside the socket, which the sidecar reads. At rest neither costs anything.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from headrace.api.component.v1 import component_pb2
from headrace.sdk.context import Context

# A real-time signal: what a component's own code uses is left alone.
STACK_SIGNAL = signal.SIGRTMIN + 7
SUFFIX = ".stacks"
MAX_STACKS = 64
DEFAULT_FRAMES = 20
MAX_FRAMES = 100
# How far a chain of awaits is followed.
MAX_AWAITS = 200
_OWN = str(Path(__file__).parents[1])
_SDK = str(Path(__file__).parent)


class RunningCall(Protocol):
    """A call that waits."""

    @property
    def context(self) -> Context: ...
    @property
    def coroutine(self) -> Any: ...
    @property
    def started_ns(self) -> int: ...


def answer_signal(socket: str) -> int:
    """From now on the signal appends all threads' stacks to `<socket>.stacks`. The number of the signal; 0 where the
    file cannot be opened."""
    try:
        descriptor = os.open(socket + SUFFIX, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    except OSError:
        return 0
    faulthandler.register(STACK_SIGNAL, file=descriptor, all_threads=True, chain=False)
    return int(STACK_SIGNAL)


def all_stacks(
    calls: Iterable[RunningCall], init: Coroutine[Any, Any, Any] | None, max_frames: int = 0
) -> component_pb2.GetStacksResponse:
    """The init hook where it runs, calls that wait for something, the oldest first, then threads other than the one
    that asks."""
    limit = min(max_frames or DEFAULT_FRAMES, MAX_FRAMES)
    answer = component_pb2.GetStacksResponse()
    if init is not None:
        answer.stacks.add(name="init", frames=_awaits(init)[:limit])
    for call in sorted(calls, key=lambda call: call.started_ns)[:MAX_STACKS]:
        answer.stacks.add(call=call.context.call, name="call", frames=_awaits(call.coroutine)[:limit])
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        if ident == threading.get_ident() or len(answer.stacks) >= MAX_STACKS:
            continue
        if frames := _frames(frame):
            answer.stacks.add(name=names.get(ident, "thread"), frames=frames[:limit])
    return answer


def _awaits(awaitable: Any) -> list[str]:
    """Innermost first: from where it waits out to its first function."""
    found: list[str] = []
    for _ in range(MAX_AWAITS):
        frame = next(
            (f for name in ("cr_frame", "gi_frame", "ag_frame") if (f := getattr(awaitable, name, None))), None
        )
        if frame is None:
            break
        found.append(_place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        following = (getattr(awaitable, name, None) for name in ("cr_await", "gi_yieldfrom", "ag_await"))
        awaitable = next((item for item in following if item is not None), None)
    return found[::-1]


def _frames(frame: FrameType | None) -> list[str]:
    """Innermost first; our own and the interpreter's frames under the component's are left out, and a thread that has
    none of the component's is none."""
    found: list[tuple[str, bool]] = []
    while frame is not None and len(found) < MAX_FRAMES:
        name = frame.f_code.co_filename
        if name.startswith(_SDK):
            break  # what is above called the component
        theirs = not name.startswith((_OWN, sys.base_prefix + "/lib/python")) or "/site-packages/" in name
        found.append((_place(name, frame.f_lineno, frame.f_code.co_name), theirs))
        frame = frame.f_back
    last = max((index for index, (_, theirs) in enumerate(found) if theirs), default=-1)
    return [text for text, _ in found[: last + 1]]


def _place(file: str, line: int, function: str) -> str:
    with contextlib.suppress(ValueError):
        file = str(Path(file).relative_to(Path.cwd()))
    return f"{function} in {os.path.basename(file) if file.startswith('/') else file}:{line}"
