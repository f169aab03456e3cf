"""Serves a component: `python -m headrace.sdk.serve --bundle DIR --entrypoint MODULE:ATTRIBUTE`.

The socket is HEADRACE_COMPONENT_SOCKET (or --socket). Exit status 0 after Shutdown or SIGTERM; 2 for wrong
arguments; 3 when the component's code cannot be imported or does not fit the contract, with the reason as
the last line on standard error; 4 when the socket cannot be opened.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO, cast

from headrace.edge.heap import keep_freed_memory
from headrace.edge.parent_death import tie_to_parent
from headrace.edge.readiness import report_ready
from headrace.sdk.component import Component
from headrace.sdk.loading import load_component
from headrace.sdk.log import ComponentLog, capture_standard_logging
from headrace.sdk.printed import PrintedLines

SOCKET_VARIABLE = "HEADRACE_COMPONENT_SOCKET"
LOOP_VARIABLE = "HEADRACE_COMPONENT_LOOP"
EXIT_BAD_COMPONENT = 3
EXIT_NO_SOCKET = 4
# Calls leave next to nothing in cycles; looking for some after every 700 objects, as Python does, costs a few percent.
COLLECT_AFTER = (5_000, 20, 20)
SHUTDOWN_HOOK_TIMEOUT_S = 5.0
STOP_GRACE_S = 0.5
# The longest path a Unix socket address can hold on Linux, without its closing zero.
MAX_SOCKET_PATH_BYTES = 107


def main(arguments: list[str] | None = None) -> int:
    tie_to_parent()
    parser = argparse.ArgumentParser(prog="python -m headrace.sdk.serve", description=__doc__)
    parser.add_argument("--bundle", required=True, type=Path, help="folder of the component")
    parser.add_argument("--entrypoint", required=True, help="MODULE:ATTRIBUTE of the Component")
    parser.add_argument("--socket", default=os.environ.get(SOCKET_VARIABLE, ""), help="Unix socket to serve on")
    given = parser.parse_args(arguments)
    if not given.socket:
        parser.error(f"--socket or {SOCKET_VARIABLE} is needed")
    for stream in (sys.stdout, sys.stderr):
        cast(TextIO, stream).reconfigure(line_buffering=True)  # type: ignore[attr-defined]
    capture_standard_logging()
    sys.stdout = cast(TextIO, PrintedLines(sys.stdout))
    keep_freed_memory()
    gc.set_threshold(*COLLECT_AFTER)  # before the component's code, which may set its own
    component = _import_component(given.bundle, given.entrypoint)
    if component is None:
        return EXIT_BAD_COMPONENT
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(component, given.socket.removeprefix("unix:")))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where there is one for this interpreter: a round trip to the sidecar takes little more than half the
    time. HEADRACE_COMPONENT_LOOP=asyncio is for code that must have the stock loop."""
    if os.environ.get(LOOP_VARIABLE) == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _import_component(bundle: Path, entrypoint: str) -> Component | None:
    try:
        return load_component(bundle, entrypoint)
    except BaseException as error:
        if not isinstance(error, (SystemExit, KeyboardInterrupt)):
            traceback.print_exception(error)
        reason = str(error).replace("\n", " ")[:1000]
        print(f"the component cannot be loaded: {type(error).__name__}: {reason}", file=sys.stderr)
        return None


async def _serve(component: Component, path: str) -> int:
    # Imported here: a component that does not import is reported without waiting for grpc.
    from headrace.sdk.process_server import SUFFIX, ProcessServer
    from headrace.sdk.server import ComponentServicer, make_server
    from headrace.sdk.stacks import answer_signal

    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        print(f"the socket path is longer than {MAX_SOCKET_PATH_BYTES} bytes: {path}", file=sys.stderr)
        return EXIT_NO_SOCKET
    servicer = ComponentServicer(component, ComponentLog())
    server = make_server(servicer)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        print(f"the socket cannot be opened: {path}: {error}", file=sys.stderr)
        return EXIT_NO_SOCKET
    servicer.stack_signal = answer_signal(path)
    process_server = ProcessServer(servicer.process)
    if len(os.fsencode(path + SUFFIX)) <= MAX_SOCKET_PATH_BYTES:
        with contextlib.suppress(OSError):  # without it the main socket serves Process, as it does in any case
            await process_server.start(path + SUFFIX)
            servicer.process_socket = True
    await server.start()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, servicer.stopped.set)
    report_ready({"address": f"unix:{path}"})
    await servicer.stopped.wait()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(servicer.shut_down(), SHUTDOWN_HOOK_TIMEOUT_S)
    await asyncio.gather(server.stop(STOP_GRACE_S), process_server.stop(STOP_GRACE_S))
    return 0


def run() -> None:
    """`main`, then the end at once: a function stuck in a thread must not keep the process."""
    status = 1
    try:
        status = main()
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException as error:
        traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
