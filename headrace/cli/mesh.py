"""A mesh on this machine: starts and supervises broker and services, keeps their ports, stops them in order.

Used by `headrace up`, the demo, tests and the bench. All processes are started at once; each says by itself when it
serves. What dies is started again on the same port; `endpoints.json` always has the present pids.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from headrace.cli.mesh_plan import (
    AGENT,
    BROKER,
    BROKER_MONITOR,
    LOOPBACK,
    ORCHESTRATOR,
    REGISTRY,
    STOP_ORDER,
    MeshOptions,
    address,
    check_options,
    choose_ports,
    collector,
    credential_keys,
    key_file,
    mesh_environment,
    reachable,
    service_command,
)
from headrace.edge.broker_greeting import check_broker
from headrace.edge.broker_process import BrokerProcess, runtime_settings
from headrace.edge.child_process import ChildProcess, Command, end_adopted, last_lines
from headrace.edge.data_directory import MESH_VARIABLE, DataDirectory, DataDirectoryLock, Endpoints, locate
from headrace.edge.full_disk import FullDisk
from headrace.edge.key_ring import check_key_file, make_key_file
from headrace.edge.process_table import end_processes_with
from headrace.edge.structured_log import get_logger
from headrace.edge.supervised import Facts, ProcessState, Supervised
from headrace.edge.task_ending import end_tasks
from headrace.model.errors import HeadraceError, Unavailable

log = get_logger(__name__)

START_LIMIT_S = 90.0
STOP_LIMIT_S = 4.5
LEFTOVER_LIMIT_S = 3.0
BROKER_RECOVERY_LIMIT_S = 60.0
BROKER_END_S = 5.0

Notice = Callable[[str], None]


class Mesh:
    """`start` it, use `endpoints`, `stop` it; or use it as an async context manager.

    `on_notice` is given a line for a person whenever a process ended by itself or is up again.
    """

    def __init__(self, options: MeshOptions, *, on_notice: Notice | None = None) -> None:
        self.options = options
        self.directory: DataDirectory = locate(options.data)
        self.start_s = 0.0
        self.broker_version = ""
        self._notice = on_notice or (lambda line: None)
        self._lock: DataDirectoryLock | None = None
        self._broker: BrokerProcess | None = None
        self._disk_watch: asyncio.Task[None] | None = None
        self._ports: dict[str, int] = {}
        self._processes: dict[str, Supervised] = {}
        self._told: dict[str, ProcessState] = {}
        self._ready = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> Endpoints:
        """Returns when everything serves. On any error nothing is left running, and the error names the cause."""
        began = time.monotonic()
        check_options(self.options)
        self.directory.create()
        self._prepare_keys()
        self._lock = DataDirectoryLock.take(self.directory)
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await self._start_all()
        except BaseException as error:
            await self.stop()
            if isinstance(error, TimeoutError):
                raise Unavailable(
                    f"the mesh did not start within {START_LIMIT_S:.0f} s",
                    reason="MESH_NOT_STARTED",
                    next_step=f"See the logs in {self.directory.logs}",
                ) from error
            raise
        self.start_s = time.monotonic() - began
        return self.endpoints

    def _prepare_keys(self) -> None:
        """Makes the data directory's own key file where it is the one to use; InvalidInput for one that is no good."""
        file = key_file(self.options, self.directory, os.environ)
        if file is not None:
            if file == self.directory.credential_keys:
                make_key_file(file)
            check_key_file(file)

    async def _start_all(self) -> None:
        self.directory.remove_endpoints()
        ended = await end_processes_with(MESH_VARIABLE, str(self.directory.path), limit_s=LEFTOVER_LIMIT_S)
        if ended:
            log.warning("ended processes left over from an earlier run", count=len(ended))
        self._ports = choose_ports(self.options, self.directory.read_ports())
        if self.options.nats:
            self.broker_version = await check_broker(self.options.nats)
            self._ports.pop(BROKER)
            self._ports.pop(BROKER_MONITOR)
        else:
            await self._supervise_broker()
        for role in self.options.roles():
            self._supervise_service(role)
        await self._until_all_are_up()
        self.directory.write_ports(self._ports)
        self._ready = True
        self.directory.write_endpoints(self.endpoints)

    async def _until_all_are_up(self) -> None:
        """The first failure counts: what fails after it usually fails because of it.

        Services wait for the broker by themselves, but not as long as it may need to recover a large store.
        """
        broker = self._processes.get(BROKER)

        def broker_is_not_up() -> bool:
            return broker is not None and broker.state is ProcessState.STARTING

        starts = [
            process.started() if process is broker else process.started(broker_is_not_up)
            for process in self._processes.values()
        ]
        waiting = {asyncio.ensure_future(start) for start in starts}
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for finished in done:
                    finished.result()
        except Unavailable as error:
            raise self._readable(error) from error
        finally:
            await end_tasks(waiting)

    def _readable(self, error: Unavailable) -> HeadraceError:
        """Replaces the JSON lines of a service's log by what they say."""
        for role, process in self._processes.items():
            if not error.message.startswith(f"{role} did not start"):
                continue
            log_file = self._log_file(role)
            said = [plain_line(line) for line in last_lines(log_file)]
            return Unavailable(
                f"{role} did not start ({process.last_exit}): {' | '.join(said)}",
                reason=error.reason,
                next_step=f"See {log_file}",
            )
        return error

    async def _supervise_broker(self) -> None:
        directory, options = self.directory, self.options
        broker = BrokerProcess(
            directory.broker,
            profile=options.profile,
            port=self._ports[BROKER],
            monitor_port=self._ports[BROKER_MONITOR],
            binary=options.nats_server,
            log_path=self._log_file(BROKER),
        )
        arguments = await broker.prepare()
        self._broker, self.broker_version = broker, broker.version
        keyless = credential_keys(BROKER, options, directory, os.environ)
        environment = {**mesh_environment(directory), **runtime_settings(os.environ, options.profile), **keyless}
        command = Command(tuple(arguments), environment, log_file=self._log_file(BROKER), foreign=True)

        async def until_it_answers(child: ChildProcess) -> Facts:
            try:
                await broker.wait_until_it_answers(lambda: child.exit_status is not None, BROKER_RECOVERY_LIMIT_S)
            except Unavailable as error:
                raise ConnectionError(str(error)) from error
            return {"address": broker.url}

        supervised = Supervised(BROKER, lambda: command, wait_until_ready=until_it_answers, on_change=self._changed)
        self._add(BROKER, supervised)
        disk = FullDisk(
            self._log_file(BROKER),
            directory.broker,
            lambda: supervised.restart(BROKER_END_S),
            on_full=lambda: self._notice(f"the disk of {directory.broker} is full: free some space, messages wait"),
        )
        self._disk_watch = asyncio.create_task(disk.run(), name="full disk")

    def _supervise_service(self, role: str) -> None:
        command = service_command(role, self.options, self.directory, self.nats_url, self._ports)
        self._add(role, Supervised(role, lambda: command, clean_up=self._end_orphans, on_change=self._changed))

    async def _end_orphans(self, pid: int) -> None:
        await end_adopted(variable=MESH_VARIABLE, value=str(self.directory.path))

    def _add(self, role: str, process: Supervised) -> None:
        self._processes[role] = process
        process.start()

    def _log_file(self, role: str) -> Path:
        return self.directory.logs / f"{role}.log"

    @property
    def nats_url(self) -> str:
        return self.options.nats if self._broker is None else self._broker.url

    @property
    def endpoints(self) -> Endpoints:
        """Addresses as other processes of this machine use them."""
        open_to = reachable(self.options.host)
        return Endpoints(
            api=address(open_to, self._ports[ORCHESTRATOR]),
            apis=[address(open_to, self._ports[role]) for role in self.options.orchestrator_roles()],
            gateways=[address(open_to, self._ports[role]) for role in self.options.gateway_roles()],
            nats=self.nats_url,
            registry=address(LOOPBACK, self._ports[REGISTRY]),
            agent=address(LOOPBACK, self._ports[AGENT]),
            pid=os.getpid(),
            profile=self.options.shown_profile,
            data=str(self.directory.path),
            processes=self.pids(),
            metrics=[address(LOOPBACK, self._ports[role]) for role in self.options.metrics_roles()],
            otlp=collector(self.options, os.environ),
        )

    def pids(self) -> dict[str, int]:
        """The present pid of each role; 0 while it is being started again."""
        return {role: process.pid for role, process in self._processes.items()}

    def pid_of(self, role: str) -> int:
        """KeyError for an unknown role; roles are broker, registry, orchestrator, agent, gateway, gateway-2, ..."""
        return self._processes[role].pid

    def _changed(self) -> None:
        if not self._ready:
            return
        for role, process in self._processes.items():
            before = self._told.get(role, ProcessState.UP)
            if process.state is ProcessState.BACKING_OFF and before is not process.state:
                self._notice(f"{role} ended ({process.last_exit}); starting it again")
            elif process.state is ProcessState.UP and before is not process.state:
                self._notice(f"{role} is up again (pid {process.pid})")
            elif process.state is ProcessState.STARTING:
                continue
            self._told[role] = process.state
        try:
            self.directory.write_endpoints(self.endpoints)
        except OSError as error:
            log.error("endpoints cannot be written", error=str(error))

    async def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """Stops in order, all of it within the limit; what does not listen is killed. Nothing is left."""
        self._ready = False
        if self._disk_watch is not None:
            await end_tasks([self._disk_watch])
        deadline = time.monotonic() + limit_s
        for kind, grace_s in STOP_ORDER:
            grace = max(0.05, min(grace_s, deadline - time.monotonic()))
            group = [process for role, process in self._processes.items() if role.partition("-")[0] == kind]
            for outcome in await asyncio.gather(*(process.stop(grace) for process in group), return_exceptions=True):
                if isinstance(outcome, BaseException):
                    log.error("a process did not stop", kind=kind, error=repr(outcome))
        if self._lock is None:
            return
        try:
            await end_processes_with(MESH_VARIABLE, str(self.directory.path), limit_s=LEFTOVER_LIMIT_S)
        except TimeoutError as error:
            log.error("left over processes", error=str(error))
        self.directory.remove_endpoints()
        shutil.rmtree(self.directory.run, ignore_errors=True)
        self._lock.release()
        self._lock = None

    def kill(self) -> None:
        """SIGKILL to everything, at once; instances die with the agent."""
        for process in self._processes.values():
            process.kill()


def plain_line(line: str) -> str:
    """What a JSON log line says, or the line."""
    try:
        fields = json.loads(line)
        error = fields.get("error", "")
        return f"{fields['message']}: {error}" if error else str(fields["message"])
    except (ValueError, KeyError, AttributeError):
        return line.strip()
