"""Starts `headrace up` as a process of its own that outlives this one, and waits until it is up."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from pathlib import Path

from headrace.cli.mesh_plan import MeshOptions, check_options
from headrace.cli.terminal import waiting
from headrace.cli.up import CTRL_C, endpoints_json
from headrace.edge.child_process import own_module
from headrace.edge.data_directory import locate, lock_holder, read_endpoints
from headrace.edge.parent_death import PARENT_PID_VARIABLE
from headrace.edge.readiness import READY_FD_VARIABLE
from headrace.model.errors import WrongState

# `up` itself gives up before that, and says why.
START_LIMIT_S = 100.0
END_LIMIT_S = 10.0


def start_detached(options: MeshOptions, *, as_json: bool) -> str:
    """Returns what `up` says when the mesh is up. WrongState where one runs there already, or with its last lines
    where it does not come up; nothing is left running then, nor after Ctrl-C."""
    check_options(options)
    directory = locate(options.data)
    directory.create()
    if holder := lock_holder(directory):
        raise WrongState(
            f"data directory {directory.path} is in use by pid {holder}",
            reason="DATA_DIRECTORY_IN_USE",
            next_step=f"Use that mesh, end it with `headrace down --data {directory.path}`, or give another --data",
        )
    output = directory.logs / "up.out"
    process, ready = _spawn(options, output)
    try:
        with waiting("starting a mesh"):
            line = _read_line(ready, START_LIMIT_S)
    except BaseException:
        _end(process)
        raise
    finally:
        os.close(ready)
    if not line:
        _end(process)
        said = output.read_text(errors="replace").strip().splitlines()[-3:]
        first, *rest = [item.removeprefix("headrace: ").strip() for item in said] or [f"the mesh ended: see {output}"]
        raise WrongState(first, reason="MESH_NOT_STARTED", next_step="\n  ".join(rest))
    if as_json:
        return endpoints_json(read_endpoints(options.data))
    option = f" --data {directory.path}"
    return output.read_text().rstrip().replace(CTRL_C, f"headrace down{option} ends it; the data stays")


def _spawn(options: MeshOptions, output: Path) -> tuple[subprocess.Popen[bytes], int]:
    ready, told = os.pipe()
    environment = {name: value for name, value in os.environ.items() if name != PARENT_PID_VARIABLE}
    try:
        with open(output, "wb") as out:
            process = subprocess.Popen(
                own_module("headrace.cli.main", "up", *up_arguments(options)),
                env={**environment, READY_FD_VARIABLE: str(told)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=(told,),
                start_new_session=True,
            )
    except BaseException:
        os.close(ready)
        raise
    finally:
        os.close(told)
    return process, ready


def up_arguments(options: MeshOptions) -> list[str]:
    """The command line that says the same as the options."""
    words = ["--data", str(options.data), "--profile", options.profile, "--host", options.host]
    for name, value in (
        ("--nats", options.nats),
        ("--nats-server", options.nats_server),
        ("--api-port", options.api_port),
        ("--http-port", options.http_port),
        ("--gateways", options.gateways),
        ("--orchestrators", options.orchestrators),
        ("--replicas", options.replicas),
        ("--workspace", options.workspace),
        ("--log-level", options.log_level),
        ("--otlp", options.otlp),
        ("--credential-keys", str(options.credential_keys or "")),
    ):
        if value:
            words += [name, str(value)]
    return words


def _read_line(descriptor: int, limit_s: float) -> bytes:
    """What the child tells; empty where it ended without a word, or past the limit."""
    deadline = time.monotonic() + limit_s
    found = b""
    while not found.endswith(b"\n"):
        readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(descriptor, 65536) if readable else b""
        if not piece:
            return b""
        found += piece
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(END_LIMIT_S)
