"""A component's process that is there before anybody knows what it will run.

A sidecar that was forked from a preloaded parent (headrace/edge/zygote.py) forks this one first of all, while it has
no thread, connection or gRPC of its own. It waits for its command on a pipe, and ends when that is closed. It serves
components without requirements of their own, once; after a crash the component is spawned as ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Mapping
from typing import NoReturn

from headrace.edge.child_process import ChildProcess, Command, environment_of
from headrace.edge.parent_death import tie_to_parent
from headrace.edge.preloaded import forget_later
from headrace.edge.process_image import show_as
from headrace.edge.readiness import READY_FD_VARIABLE
from headrace.edge.zygote import FORKED_VARIABLE, end, take_place

MODULE = "headrace.sdk.serve"


class SpareComponent:
    """`fork` it before there is a loop, `take` it in the loop. Untaken it ends with its sidecar."""

    def __init__(self, pid: int, command: int, ready: int, output: int) -> None:
        self._pid = pid
        self._command = command
        self._ready = ready
        self._output = output
        self._taken = False

    @classmethod
    def fork(cls) -> SpareComponent | None:
        """None in a sidecar that was not forked itself."""
        if not os.environ.pop(FORKED_VARIABLE, ""):
            return None
        command, command_end = os.pipe()
        ready, ready_end = os.pipe()
        output, output_end = os.pipe()
        sidecar = os.getpid()
        pid = os.fork()
        if pid == 0:
            _wait_and_run(sidecar, command, ready_end, output_end)
        for descriptor in (command, ready_end, output_end):
            os.close(descriptor)
        return cls(pid, command_end, ready, output)

    def take(self, command: Command) -> ChildProcess | None:
        """The spare process, which becomes the command's; None when it was used up, or does not fit and is ended."""
        if self._taken:
            return None
        self._taken = True
        if command.arguments[:4] != (sys.executable, "-P", "-m", MODULE):
            os.close(self._command)
            os.close(self._output)
            ChildProcess.adopt(self._pid, ready_descriptor=self._ready)  # so that it is reaped
            return None
        line = {
            "arguments": command.arguments[4:],
            "environment": environment_of(command),
            "folder": str(command.folder or ""),
        }
        child = ChildProcess.adopt(
            self._pid,
            ready_descriptor=self._ready,
            output=os.fdopen(self._output, "rb", buffering=0),
            on_output=command.on_output,
        )
        with contextlib.suppress(BrokenPipeError), os.fdopen(self._command, "wb") as pipe:
            pipe.write(json.dumps(line).encode())
        return child


def _wait_and_run(sidecar: int, command: int, ready: int, output: int) -> NoReturn:
    try:
        tie_to_parent(sidecar)
        take_place(output, keep=(command, ready))
        with os.fdopen(command, "rb") as pipe:
            raw = pipe.read()
        if raw:
            line = json.loads(raw)
            _become(line["arguments"], {**line["environment"], READY_FD_VARIABLE: str(ready)}, line["folder"])
    except BaseException as error:
        traceback.print_exception(error)
        end(1)
    end(0)


def _become(arguments: list[str], environment: Mapping[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    show_as([sys.executable, "-P", "-m", MODULE, *arguments])
    if folder:
        os.chdir(folder)
    forget_later()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    sys.argv = [MODULE, *arguments]
    from headrace.sdk.serve import run

    run()
