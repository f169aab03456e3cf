"""Starts our own Python modules by forking a preloaded parent (headrace/edge/zygote.py); by spawning where it cannot.

A start costs a tenth of the processor's time and the memory of all imports is shared. Where the parent does not
come up, dies or does not answer, processes are spawned as ever; it is started again with back-off.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from headrace.edge.child_process import ChildProcess, Command, environment_of, own_module
from headrace.edge.process_image import ROOM_BYTES, ROOM_VARIABLE
from headrace.edge.structured_log import get_logger
from headrace.edge.supervised import ProcessState, Supervised
from headrace.edge.zygote import GO, REQUEST_LIMIT_S
from headrace.model.errors import HeadraceError

log = get_logger(__name__)

LOAD_LIMIT_S = 10.0
END_GRACE_S = 0.2


class PreloadedParent:
    """`start` it once in the running loop, `spawn` through it, `stop` it last. The caller must be a subreaper."""

    def __init__(self, address: Path, *, first: Sequence[str], later: Sequence[str], log_file: Path | None) -> None:
        """`address`: path of its socket. `first` and `later`: see headrace/edge/zygote.py."""
        arguments = ("--socket", str(address), "--first", ",".join(first), "--later", ",".join(later))
        room = {ROOM_VARIABLE: "." * ROOM_BYTES}
        command = Command(own_module("headrace.edge.zygote", *arguments), room, log_file=log_file)
        self._address = address
        self._supervised = Supervised("zygote", lambda: command)

    def start(self) -> None:
        self._supervised.start()

    async def stop(self) -> None:
        await self._supervised.stop(END_GRACE_S)
        self._address.unlink(missing_ok=True)

    async def spawn(self, command: Command) -> ChildProcess:
        """Like ChildProcess.spawn with readiness, for a command made by `own_module`."""
        module, arguments = _module_of(command)
        if module and await self._is_up():
            try:
                return await self._fork(command, module, arguments)
            except (OSError, ValueError) as error:
                log.warning("the preloaded parent does not answer, spawning", error=repr(error))
        return ChildProcess.spawn(command, readiness=True)

    async def _is_up(self) -> bool:
        if self._supervised.state is ProcessState.STARTING and not self._supervised.last_exit:
            with contextlib.suppress(HeadraceError, TimeoutError):
                async with asyncio.timeout(LOAD_LIMIT_S):
                    await self._supervised.started()
        return self._supervised.state is ProcessState.UP

    async def _fork(self, command: Command, module: str, arguments: Sequence[str]) -> ChildProcess:
        request = {"module": module, "arguments": list(arguments), "environment": environment_of(command)}
        with contextlib.ExitStack() as opened:
            ready, ready_end = os.pipe()
            opened.callback(os.close, ready_end)
            go_end, go = os.pipe()
            opened.callback(os.close, go_end)
            opened.callback(os.close, go)
            output = 2
            if command.log_file is not None:
                command.log_file.parent.mkdir(parents=True, exist_ok=True)
                output = opened.enter_context(open(command.log_file, "ab")).fileno()
            try:
                pid = await asyncio.to_thread(self._ask, json.dumps(request).encode(), [output, ready_end, go_end])
                child = ChildProcess.adopt(pid, ready_descriptor=ready)
            except BaseException:
                os.close(ready)
                raise
            os.write(go, GO)
        return child

    def _ask(self, request: bytes, descriptors: list[int]) -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(2 * REQUEST_LIMIT_S)
            connection.connect(str(self._address))
            socket.send_fds(connection, [request], descriptors)
            return int(connection.recv(64))


def _module_of(command: Command) -> tuple[str, Sequence[str]]:
    """Module and arguments of a command made by `own_module`; ("", ()) for any other."""
    start = own_module("")[:-1]
    plain = command.on_output is None and command.folder is None and not command.foreign
    if not sys.platform.startswith("linux") or not plain or command.arguments[: len(start)] != start:
        return "", ()
    return command.arguments[len(start)], command.arguments[len(start) + 1 :]
