"""`headrace down`: ends the mesh that runs on a data directory, from another terminal."""

from __future__ import annotations

import contextlib
import os
import select
import signal

from headrace.cli.invocation import DataOption, JsonOption, print_json
from headrace.cli.terminal import waiting
from headrace.edge.data_directory import DataDirectory, locate, lock_holder, read_endpoints
from headrace.model.errors import DeadlineExceeded, NotFound, WrongState

STOP_LIMIT_S = 10.0


def down(data: DataOption = None, as_json: JsonOption = False) -> None:
    """End the mesh of a data directory in order, as Ctrl-C does; its data stays."""
    directory = locate(data)
    pid = lock_holder(directory)
    if not pid:
        read_endpoints(data)  # says best why not
        raise NotFound(f"no mesh runs on {directory.path}", reason="MESH_NOT_RUNNING")
    with waiting(f"ending the mesh on {directory.path}"):
        end_mesh(directory, pid, STOP_LIMIT_S)
    if as_json:
        print_json({"data": str(directory.path), "pid": pid, "state": "DOWN"})
    else:
        print(f"the mesh on {directory.path} is down; its data stays")


def end_mesh(directory: DataDirectory, pid: int, limit_s: float) -> None:
    """SIGTERM to the holder of the lock; returns when it is gone. DeadlineExceeded at the limit."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # The descriptor names one process for good: is it still the one that holds the directory?
        if lock_holder(directory) != pid:
            return
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        except PermissionError:
            raise WrongState(
                f"the mesh on {directory.path} (pid {pid}) belongs to another user",
                reason="NOT_YOURS",
                next_step="Ask its owner to end it",
            ) from None
        except ProcessLookupError:
            return
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if not poller.poll(int(limit_s * 1000)):
            raise DeadlineExceeded(
                f"the mesh (pid {pid}) has not ended within {limit_s:.0f} s",
                next_step=f"See {directory.logs / 'up.log'}; `kill -9 {pid}` ends it and all its processes at once",
            )
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
