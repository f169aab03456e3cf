"""Instances as processes: a sidecar each, in a session of its own, restarted with back-off.

A sidecar is tied to the agent and a component to its sidecar by the parent-death signal; whatever a
component started itself is adopted by the agent (a subreaper) and ended with the instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.edge.child_process import ChildProcess, Command, adopt_orphans, end_adopted, own_module
from headrace.edge.data_directory import DataDirectory, DataDirectoryLock
from headrace.edge.grpc_environment import prepare_grpc_environment
from headrace.edge.preloaded_parent import PreloadedParent
from headrace.edge.process_table import end_processes_with
from headrace.edge.structured_log import get_logger
from headrace.edge.supervised import ProcessState, Supervised, spawn_ready
from headrace.model.errors import Unavailable
from services.agent.domain.instances import InstanceSpec, InstanceState, InstanceView

log = get_logger(__name__)

INSTANCE_VARIABLE = "HEADRACE_INSTANCE"
AGENT_VARIABLE = "HEADRACE_AGENT"
LEFTOVER_LIMIT_S = 5.0
KEPT_LOGS = 1_000
LOG_QUIET_S = 24 * 3600.0
STARTS_BETWEEN_CLEANINGS = 50
STARTING_AT_ONCE = 16
TRIAL_READY_S = 20.0
TRIAL_GRACE_S = 1.0
# What instances are forked with: first what components see, then what sidecars need besides.
COMPONENT_MODULES = ("headrace.sdk.serve", "headrace.sdk.server", "headrace.sdk.process_server")
SIDECAR_MODULES = ("services.sidecar.__main__", "services.sidecar.preload")

_STATES = {
    ProcessState.STARTING: InstanceState.STARTING,
    ProcessState.UP: InstanceState.UP,
    ProcessState.BACKING_OFF: InstanceState.BACKING_OFF,
    ProcessState.STOPPING: InstanceState.STOPPING,
    ProcessState.ENDED: InstanceState.STOPPING,
}


@dataclass(frozen=True)
class ProcessSettings:
    """Where instances find the rest of the mesh, and what runs as their sidecar."""

    nats_url: str
    registry: str
    cache_dir: Path
    run_dir: Path
    log_dir: Path
    command: Sequence[str] = own_module("services.sidecar")
    log_level: str = "info"
    preload: bool = False
    """Fork sidecars and components from a parent that has imported everything, instead of executing them."""


Spawn = Callable[[Command], Awaitable[ChildProcess]]


class ProcessInstance:
    """One supervised sidecar."""

    def __init__(
        self,
        settings: ProcessSettings,
        spec: InstanceSpec,
        gate: asyncio.Semaphore,
        on_change: Callable[[], None],
        spawn: Spawn = spawn_ready,
    ) -> None:
        self._settings = settings
        self._spec = spec
        self._supervised = Supervised(
            spec.name, self._command, clean_up=self._end_leftovers, on_change=on_change, gate=gate, spawn=spawn
        )
        self._supervised.start()

    def _command(self) -> Command:
        return sidecar_command(self._settings, self._spec)

    async def _end_leftovers(self, pid: int) -> None:
        await end_adopted(session=pid, variable=INSTANCE_VARIABLE, value=self._spec.name)

    def view(self, generation: int) -> InstanceView:
        supervised = self._supervised
        return InstanceView(
            spec=self._spec,
            generation=generation,
            state=_STATES[supervised.state],
            address=supervised.address,
            pid=supervised.pid,
            starts=supervised.starts,
            last_exit=supervised.last_exit,
            started_at_unix_s=supervised.started_at_unix_s,
        )

    async def stop(self, grace_s: float) -> None:
        address = str(self._supervised.facts.get("address", ""))
        await self._supervised.stop(grace_s)
        if address.startswith("unix:"):
            with contextlib.suppress(OSError):
                os.unlink(address.removeprefix("unix:"))


def sidecar_command(settings: ProcessSettings, spec: InstanceSpec, *arguments: str, log_name: str = "") -> Command:
    """Command line and environment of a sidecar."""
    environment: dict[str, str] = {
        "HEADRACE_NATS_URL": settings.nats_url,
        "HEADRACE_REGISTRY": settings.registry,
        "HEADRACE_CACHE_DIR": str(settings.cache_dir),
        "HEADRACE_RUN_DIR": str(settings.run_dir),
        "HEADRACE_WORKSPACE": spec.workspace,
        "HEADRACE_FLOW": spec.flow,
        "HEADRACE_DEPLOYMENT": str(spec.deployment),
        "HEADRACE_STEP": spec.step,
        "HEADRACE_REPLICA": str(spec.replica),
        "HEADRACE_PLAN_DIGEST": spec.plan_digest,
        "HEADRACE_LOG_LEVEL": settings.log_level,
        INSTANCE_VARIABLE: spec.name,
        AGENT_VARIABLE: str(settings.run_dir),
    }
    prepare_grpc_environment(environment)
    for variable in ("GRPC_EXPERIMENTS", "GRPC_VERBOSITY", "GRPC_ENABLE_FORK_SUPPORT"):
        environment[variable] = os.environ.get(variable, environment[variable])
    log_file = settings.log_dir / f"{log_name or spec.name}.log"
    return Command((*settings.command, *arguments), environment, log_file=log_file)


class ProcessDriver:
    """Runs instances as processes of this machine; no privileges needed."""

    def __init__(self, settings: ProcessSettings) -> None:
        self._settings = settings
        self._gate = asyncio.Semaphore(STARTING_AT_ONCE)
        self._lock: DataDirectoryLock | None = None
        self._parent: PreloadedParent | None = None
        self._starts = 0

    async def prepare(self) -> None:
        adopt_orphans()
        settings = self._settings
        for folder in (settings.cache_dir, settings.run_dir, settings.log_dir):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = DataDirectoryLock.take(DataDirectory(settings.run_dir))
        ended = await end_processes_with(AGENT_VARIABLE, str(settings.run_dir), limit_s=LEFTOVER_LIMIT_S)
        if ended:
            log.warning("ended processes left over from an earlier agent", count=len(ended))
        for socket_file in settings.run_dir.glob("*.sock"):
            with contextlib.suppress(OSError):
                socket_file.unlink()
        self._forget_old_logs()
        if settings.preload:
            place, log_file = settings.run_dir / "zygote.sock", settings.log_dir / "zygote.log"
            self._parent = PreloadedParent(place, first=COMPONENT_MODULES, later=SIDECAR_MODULES, log_file=log_file)
            self._parent.start()

    def start(self, spec: InstanceSpec, on_change: Callable[[], None]) -> ProcessInstance:
        self._starts += 1
        if self._starts % STARTS_BETWEEN_CLEANINGS == 0:
            self._forget_old_logs()
        spawn = self._parent.spawn if self._parent is not None else spawn_ready
        return ProcessInstance(self._settings, spec, self._gate, on_change, spawn)

    @contextlib.asynccontextmanager
    async def trial_process(self, workspace: str, name: str) -> AsyncIterator[str]:
        """The address of a process that serves one trial; at the exit it is gone, with all that it started."""
        spec = InstanceSpec(name, workspace, "trial", 0, "trial", 0, "-")
        command = sidecar_command(self._settings, spec, "--trial", log_name="trials")
        child = await (self._parent.spawn if self._parent is not None else spawn_ready)(command)
        address = ""
        try:
            facts = await child.ready(TRIAL_READY_S)
            address = str(facts.get("address", ""))
            yield address
        except ConnectionError as error:
            raise Unavailable("the process of the trial ended before it served", reason="TRIAL_NOT_STARTED") from error
        finally:
            await asyncio.shield(self._end_trial(child, name, address))

    async def _end_trial(self, child: ChildProcess, name: str, address: str) -> None:
        await child.end(TRIAL_GRACE_S)
        try:
            await end_adopted(session=child.pid, variable=INSTANCE_VARIABLE, value=name)
        except TimeoutError as error:
            log.error("left over processes of a trial", error=str(error))
        if address.startswith("unix:"):
            with contextlib.suppress(OSError):
                os.unlink(address.removeprefix("unix:"))

    async def close(self) -> None:
        if self._parent is not None:
            await self._parent.stop()
        try:
            await end_adopted(limit_s=1.0)
        except TimeoutError as error:
            log.error("left over processes", error=str(error))

    def _forget_old_logs(self) -> None:
        """Keeps the newest logs, and those that somebody may be writing to."""
        newest = time.time() - LOG_QUIET_S
        aged = [(file.stat().st_mtime, file) for file in self._settings.log_dir.glob("*.log*")]
        for changed_at, file in sorted(aged)[:-KEPT_LOGS]:
            if changed_at > newest:
                break
            with contextlib.suppress(OSError):
                file.unlink()
