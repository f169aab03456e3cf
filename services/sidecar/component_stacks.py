"""Where a component stands: asked through the contract, or, if it cannot answer, by the signal that it named.

The signal is only sent to a component that named one in its handshake: any other would be killed by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.api.sidecar.v1 import sidecar_pb2

ASK_LIMIT_S = 0.3
SIGNAL_LIMIT_S = 0.4
LOOK_S = 0.02
MAX_BYTES = 64 * 1024
MAX_STACKS = 16
MAX_FRAMES = 20
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>.*)$')
# Of the SDK and of what waits for work: a thread that has nothing else is none of the component's doing.
_SDK = "/headrace/sdk/"
_PLUMBING = ("/headrace/", "/asyncio/", "/concurrent/futures/", "/threading.py", "/grpc/", "<frozen", "/selectors.py")


def stacks_file(socket: Path) -> Path:
    """Where the component appends its threads' stacks at the signal."""
    return Path(f"{socket}.stacks")


def sidecar_stacks(how: str, stacks: list[Any], problem: str = "") -> sidecar_pb2.ComponentStacks:
    from headrace.api.sidecar.v1 import sidecar_pb2

    return sidecar_pb2.ComponentStacks(how=how, stacks=stacks, problem=problem)


async def stacks_of(pid: int, stub: Any, socket: Path, signal_number: int) -> sidecar_pb2.ComponentStacks:
    """Asks first; a component that does not answer in time is sent its signal."""
    import grpc

    from headrace.api.component.v1 import component_pb2

    try:
        answer = await stub.GetStacks(component_pb2.GetStacksRequest(max_frames=MAX_FRAMES), timeout=ASK_LIMIT_S)
        return sidecar_stacks("asked", list(answer.stacks)[:MAX_STACKS])
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return sidecar_stacks("", [], "its SDK does not tell")
    if not signal_number:
        return sidecar_stacks("", [], "it does not answer, and its SDK has no other way to tell")
    text = await _by_signal(pid, stacks_file(socket), signal_number)
    if not text:
        return sidecar_stacks("", [], "it answers neither a question nor a signal")
    return sidecar_stacks("signal", parse_dump(text))


async def _by_signal(pid: int, file: Path, number: int) -> str:
    """What the process wrote; empty when it wrote nothing in time."""
    with contextlib.suppress(OSError):
        os.truncate(file, 0)  # it appends
        os.kill(pid, number)
        size, deadline = 0, asyncio.get_running_loop().time() + SIGNAL_LIMIT_S
        while asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(LOOK_S)
            now = file.stat().st_size
            if now and now == size:
                break
            size = now
        with open(file, "rb") as dump:
            return dump.read(MAX_BYTES).decode(errors="replace")
    return ""


def parse_dump(text: str) -> list[Any]:
    """Stacks of faulthandler's text, those with frames of the component's own only; the current thread's first."""
    from headrace.api.component.v1 import component_pb2

    stacks: list[Any] = []
    frames: list[str] = []
    name, own = "", 0
    sdk: int | None = None

    def end() -> None:
        nonlocal own
        own = min(own, sdk if sdk is not None else own)  # what is above the SDK's frames called the component
        if own:
            stack = component_pb2.Stack(name=name, frames=frames[:own][:MAX_FRAMES])
            stacks.insert(0 if name == "main thread" else len(stacks), stack)

    for line in text.splitlines():
        if line.startswith(("Thread ", "Current thread ")):
            end()
            name, frames, own, sdk = ("main thread" if line.startswith("Current") else "thread"), [], 0, None
        elif found := _FRAME.match(line):
            if _SDK in found["file"] and sdk is None:
                sdk = len(frames)
            frames.append(f"{found['function']} in {os.path.basename(found['file'])}:{found['line']}")
            if not any(part in found["file"] for part in _PLUMBING):
                own = len(frames)
    end()
    return stacks[:MAX_STACKS]
