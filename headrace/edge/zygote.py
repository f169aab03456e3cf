"""A preloaded parent: has imported what its children need, and forks them on request in milliseconds.

    python -P -m headrace.edge.zygote --socket PATH --first MODULE,... --later MODULE,...

It runs in one thread, opens no connection and starts no gRPC, so that what it forks is as good as executed. Each
child is orphaned at once, so that it belongs to the next subreaper above (who asked), and waits until that one has
written it down. `preloaded.py` tells the modules that every child may see from those that were loaded for some only.
Who asks: headrace/edge/preloaded_parent.py.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from typing import NoReturn

from headrace.edge import preloaded
from headrace.edge.parent_death import tie_to_parent
from headrace.edge.process_image import ROOM_VARIABLE, show_as
from headrace.edge.readiness import READY_FD_VARIABLE, report_ready

EXIT_HAS_THREADS = 3
REQUEST_LIMIT_S = 2.0
MAX_REQUEST_BYTES = 65536
GO = b"g"
# Set in a forked child's environment.
FORKED_VARIABLE = "HEADRACE_FORKED"


def main() -> int:
    tie_to_parent()
    parser = argparse.ArgumentParser(prog="python -m headrace.edge.zygote", description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--first", default="", help="modules that every child may see")
    parser.add_argument("--later", default="", help="modules for those children only that import them anyway")
    given = parser.parse_args()
    os.environ.pop(ROOM_VARIABLE, None)
    for name in filter(None, given.first.split(",")):
        importlib.import_module(name)
    preloaded.note_first()
    for name in filter(None, given.later.split(",")):
        importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) != 1:
        print("a preloaded module has started a thread; a fork of that would be broken", file=sys.stderr)
        return EXIT_HAS_THREADS
    gc.collect()
    gc.freeze()  # a collection in a child must not touch, and so copy, what is shared
    serve(given.socket)
    return 0


def serve(path: str) -> None:
    """Answers requests one after another, for ever."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.path.exists(path):
        os.unlink(path)
    listener.bind(path)
    listener.listen(64)
    report_ready({"address": path})
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(REQUEST_LIMIT_S)
            try:
                _answer(connection)
            except (OSError, ValueError, KeyError) as error:
                print(f"request not answered: {error!r}", file=sys.stderr, flush=True)


def _answer(connection: socket.socket) -> None:
    """One request: what to run, and the descriptors of output, readiness pipe and permission to go."""
    raw, descriptors, _, _ = socket.recv_fds(connection, MAX_REQUEST_BYTES, 3)
    try:
        output, ready, go = descriptors
        pid = _fork_orphan(json.loads(raw), output, ready, go)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    connection.send(b"%d" % pid)


def _fork_orphan(request: dict[str, object], output: int, ready: int, go: int) -> int:
    """The child's pid; its parent between has ended."""
    read_end, write_end = os.pipe()
    between = os.fork()
    if between == 0:
        between = os.getpid()
        try:
            orphan = os.fork()
        except OSError:
            os._exit(1)
        if orphan == 0:
            _run(request, output, ready, go, between)
        os.write(write_end, b"%d" % orphan)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        pid = pipe.read()
    os.waitpid(between, 0)
    if not pid:
        raise OSError("no process could be forked")
    return int(pid)


def _run(request: dict[str, object], output: int, ready: int, go: int, between: int) -> NoReturn:
    status = 1
    try:
        take_place(output, keep=(ready, go))
        os.environ.clear()
        os.environ.update(request["environment"])  # type: ignore[call-overload]
        module = str(request["module"])
        arguments = [str(argument) for argument in request["arguments"]]  # type: ignore[attr-defined]
        show_as([sys.executable, "-P", "-m", module, *arguments])
        os.environ[READY_FD_VARIABLE] = str(ready)
        os.environ[FORKED_VARIABLE] = "1"
        if os.read(go, 1) != GO:
            os._exit(0)  # whoever asked is gone, or does not want it any more
        os.close(go)
        while os.getppid() == between:
            time.sleep(0.0005)
        sys.argv = [module, *arguments]
        status = importlib.import_module(f"{module}.__main__").main()
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException as error:
        traceback.print_exception(error)
    end(status)


def take_place(output: int, keep: tuple[int, ...]) -> None:
    """A session of its own, default signals, this output, and no other descriptor than these."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:
                continue  # the listing's own


def end(status: int) -> NoReturn:
    """Ends a forked process: what the parent had registered to run at its end is not for us."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
