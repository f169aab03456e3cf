"""A whole mesh for tests: `headrace up` as a process of its own, tied to the test process.

    async def test_something(mesh: RunningMesh) -> None:
        async with AsyncClient(mesh.api) as client: ...
        mesh.kill("orchestrator")
        mesh.kill("sidecar", flow="orders", step="price")

Roles: broker, registry, orchestrator, agent, gateway, gateway-2, ..., up; and sidecar, component with flow and step.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.edge.data_directory import MESH_VARIABLE, Endpoints, locate, read_endpoints
from headrace.edge.process_table import environment_value, processes_with

START_LIMIT_S = 40.0
STOP_LIMIT_S = 15.0


@dataclass
class RunningMesh:
    """A mesh that runs on `data`."""

    data: Path
    process: subprocess.Popen[bytes]

    @property
    def endpoints(self) -> Endpoints:
        return read_endpoints(self.data)

    @property
    def api(self) -> str:
        return self.endpoints.api

    @property
    def gateway(self) -> str:
        """HTTP address of the first gateway, `host:port`."""
        return self.endpoints.gateways[0]

    def processes(self) -> list[int]:
        """Every process of this mesh but `up` itself, found by environment."""
        return processes_with(MESH_VARIABLE, str(locate(self.data).path))

    def pid_of(self, role: str, flow: str = "", step: str = "", deployment: int = 0) -> int:
        """The present process of a role; the first one of a step. AssertionError where there is none now."""
        if role == "up":
            return self.process.pid
        if role in ("sidecar", "component"):
            pids = self.pids_of(role, flow, step, deployment)
            assert pids, f"no {role} of {flow}/{step} runs"
            return pids[0]
        pid = self.endpoints.processes[role]
        assert pid, f"{role} does not run"
        return pid

    def pids_of(self, role: str, flow: str, step: str, deployment: int = 0) -> list[int]:
        """Sidecars or components of a step, one per replica; of all deployments unless one is named."""
        module = "headrace.sdk.serve" if role == "component" else "services.sidecar"
        return [
            pid
            for pid in processes_with(MESH_VARIABLE, str(locate(self.data).path))
            if (owner := owner_of(pid))[:3:2] == (flow, step)
            and deployment in (0, owner[1])
            and _is_python_of(pid, module)
        ]

    def kill(self, role: str, flow: str = "", step: str = "", number: int = signal.SIGKILL, deployment: int = 0) -> int:
        """Sends the signal (kill -9) and answers the pid it went to."""
        pid = self.pid_of(role, flow, step, deployment)
        os.kill(pid, number)
        return pid

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends `up` and waits for it; answers its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_LIMIT_S)

    def log(self, role: str) -> str:
        """What a role has logged so far."""
        return (locate(self.data).logs / f"{role}.log").read_text(errors="replace")


def owner_of(pid: int) -> tuple[str, int, str]:
    """Flow, deployment and step of a process, from its instance's name: `default.orders.d1.price.0`."""
    parts = (environment_value(pid, "HEADRACE_INSTANCE") or "").split(".")
    return (parts[1], int(parts[2][1:]), parts[3]) if len(parts) == 5 else ("", 0, "")


def _is_python_of(pid: int, module: str) -> bool:
    try:
        return module in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False


def up_command(data: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "headrace.cli.main", "up", "--data", str(data), *options]


@contextlib.contextmanager
def start_mesh(
    folder: Path,
    profile: str = "fast",
    *options: str,
    ack_wait_s: float = 30.0,
    within: Callable[[list[str]], list[str]] = list,
    **environment: str,
) -> Iterator[RunningMesh]:
    """Runs `headrace up` on `folder/data`, or on what is there already; ready when it yields.

    `ack_wait_s`: how long what a killed sidecar held waits until it is delivered again. `within` makes of its
    command line one that runs it in surroundings of its own; `environment` is set for the mesh besides.
    """
    data = folder / "data"
    output = folder / "up.out"
    read_end, write_end = os.pipe()
    with open(output, "ab") as out:
        process = subprocess.Popen(
            within(up_command(data, "--profile", profile, *options)),
            env={
                **os.environ,
                "HEADRACE_PARENT_PID": str(os.getpid()),
                "HEADRACE_READY_FD": str(write_end),
                "HEADRACE_ACK_WAIT_S": f"{ack_wait_s:g}",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            pass_fds=(write_end,),
            start_new_session=True,
        )
    os.close(write_end)
    mesh = RunningMesh(data, process)
    try:
        readable, _, _ = select.select([read_end], [], [], START_LIMIT_S)
        ready = os.read(read_end, 65536) if readable else b""
        assert ready.endswith(b"\n"), f"headrace up did not get ready:\n{output.read_text(errors='replace')}"
        yield mesh
    finally:
        os.close(read_end)
        try:
            mesh.stop()
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_LIMIT_S)
            raise


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[RunningMesh]:
    """A mesh of this test's own, `fast` profile."""
    with start_mesh(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def module_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """One mesh for all tests of a module, `fast` profile; for tests that leave it as they found it."""
    with start_mesh(tmp_path_factory.mktemp("mesh")) as running:
        yield running
