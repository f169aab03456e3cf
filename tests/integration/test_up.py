"""`headrace up`, `down` and `status` as a person runs them: real processes, real signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headrace.edge.broker_process import BrokerProcess, free_port, port_is_free
from headrace.edge.child_process import ChildProcess, Command
from headrace.edge.data_directory import MESH_VARIABLE, locate, lock_holder, read_endpoints
from headrace.edge.process_table import is_running, processes_with
from headrace.model.errors import NotFound
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh, start_mesh, up_command

ROLES = ["broker", "registry", "orchestrator", "agent", "gateway"]


def headrace(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headrace.cli.main", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=40,
    )


def refused_up(data: Path, *options: str) -> list[str]:
    """The lines of a refusal; nothing is left of the attempt."""
    command = up_command(data, *options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=40)
    assert done.returncode in (1, 3), done.stderr
    assert "Traceback" not in done.stderr
    assert processes_with(MESH_VARIABLE, str(data)) == []
    assert not (data / "endpoints.json").exists()
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 3, done.stderr
    return lines


async def test_up_serves_and_everything_killed_comes_back_on_its_port(mesh: RunningMesh) -> None:
    before = mesh.endpoints
    assert sorted(before.processes) == sorted(ROLES)
    for role in ROLES:
        killed = mesh.kill(role)

        def another(role: str = role, killed: int = killed) -> bool:
            return mesh.endpoints.processes[role] not in (0, killed)

        await eventually(another, within_s=15)
    addresses = [before.api, before.registry, before.agent, *before.gateways, before.nats.removeprefix("nats://")]
    for address in addresses:
        await eventually(lambda address=address: _answers(address), within_s=15)
    after = mesh.endpoints
    assert (after.api, after.gateways, after.nats) == (before.api, before.gateways, before.nats)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


async def test_ctrl_c_ends_all_within_five_seconds(tmp_path: Path) -> None:
    with start_mesh(tmp_path) as mesh:
        began = time.monotonic()
        assert mesh.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 5
        assert mesh.processes() == []
        with pytest.raises(NotFound):
            read_endpoints(mesh.data)
        assert not locate(mesh.data).run.exists()


async def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    with start_mesh(tmp_path) as mesh:
        mesh.kill("agent", number=signal.SIGSTOP)  # an orderly stop would have to wait for it
        began = time.monotonic()
        mesh.kill("up", number=signal.SIGINT)
        await eventually(lambda: "stopping" in (tmp_path / "up.out").read_text())
        assert mesh.stop(signal.SIGINT) == 130
        assert time.monotonic() - began < 1.5
        await eventually(lambda: mesh.processes() == [], within_s=2)


async def test_a_process_that_does_not_listen_cannot_hold_up_the_stop(tmp_path: Path) -> None:
    with start_mesh(tmp_path) as mesh:
        for role in ("gateway", "agent"):
            mesh.kill(role, number=signal.SIGSTOP)
        began = time.monotonic()
        assert mesh.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 5.5
        assert mesh.processes() == []


async def test_kill_of_up_leaves_no_process_and_the_next_up_keeps_ports_and_data(tmp_path: Path) -> None:
    with start_mesh(tmp_path) as mesh:
        before = mesh.endpoints
        mesh.kill("up")
        mesh.process.wait(5)
        await eventually(lambda: mesh.processes() == [], within_s=2)
        with pytest.raises(NotFound, match="does not run any more"):
            read_endpoints(mesh.data)
    with start_mesh(tmp_path) as mesh:
        after = mesh.endpoints
        assert (after.api, after.gateways, after.nats) == (before.api, before.gateways, before.nats)


async def test_the_next_up_ends_what_an_earlier_one_left(tmp_path: Path) -> None:
    data = tmp_path / "data"
    left = ChildProcess.spawn(Command(("sleep", "600"), {MESH_VARIABLE: str(data)}, foreign=True))
    with start_mesh(tmp_path):
        assert not is_running(left.pid)
    await left.wait()


def test_a_second_up_on_the_same_data_is_refused(module_mesh: RunningMesh) -> None:
    command = up_command(module_mesh.data, "--profile", "fast")
    done = subprocess.run(command, capture_output=True, text=True, timeout=40)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"headrace: data directory {module_mesh.data} is in use by pid {module_mesh.process.pid}",
        f"  Use that mesh, end it with `headrace down --data {module_mesh.data}`, or give another --data",
    ]
    assert module_mesh.endpoints.pid == module_mesh.process.pid


def test_down_ends_the_mesh_and_says_so(tmp_path: Path) -> None:
    with start_mesh(tmp_path) as mesh:
        done = headrace("down", "--data", str(mesh.data))
        assert (done.returncode, done.stderr) == (0, "")
        assert lock_holder(locate(mesh.data)) == 0
        assert mesh.processes() == []
        again = headrace("down", "--data", str(mesh.data))
        assert again.returncode == 3
        assert again.stderr.startswith(f"headrace: no mesh runs on {mesh.data}\n")


def test_status_shows_processes_and_profile(module_mesh: RunningMesh) -> None:
    done = headrace("status", "--data", str(module_mesh.data), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["profile"] == "fast"
    assert facts["flows"] == []
    assert [item["role"] for item in facts["processes"] if item["state"] == "UP"] == ROLES
    text = headrace("status", HEADRACE_DATA=str(module_mesh.data)).stdout
    assert all(role in text for role in ROLES)


def test_status_without_a_mesh_says_how_to_start_one(tmp_path: Path) -> None:
    done = headrace("status", "--data", str(tmp_path / "none"))
    assert done.returncode == 3
    assert done.stderr.splitlines()[0] == f"headrace: no mesh runs on {tmp_path / 'none'}"
    assert "headrace up" in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    port = free_port()
    while not port_is_free("127.0.0.1", port - 1):
        port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert refused_up(tmp_path / "data", "--api-port", str(port)) == [
            f"headrace: api-port: {port} is taken on 127.0.0.1",
            "  Choose another --api-port, or 0 for a free one",
        ]
        lines = refused_up(tmp_path / "data", "--gateways", "2", "--http-port", str(port - 1))
        assert lines[0] == f"headrace: http-port: {port} is taken on 127.0.0.1"


def test_a_broker_that_is_too_old_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "nats-server"
    old.write_text("#!/bin/sh\necho 'nats-server: v2.9.10'\n")
    old.chmod(0o755)
    lines = refused_up(tmp_path / "data", "--nats-server", str(old))
    assert lines[0] == f"headrace: nats-server: '{old}' is version 2.9.10, older than 2.15"
    missing = refused_up(tmp_path / "data", "--nats-server", str(tmp_path / "none"))
    assert missing[0] == f"headrace: nats-server: '{tmp_path / 'none'}' cannot be run"


def test_a_broker_that_does_not_start_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "nats-server"
    broken.write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo 'nats-server: v2.15.1' || { echo 'disk is full' >&2; exit 1; }\n"
    )
    broken.chmod(0o755)
    lines = refused_up(tmp_path / "data", "--nats-server", str(broken))
    assert lines[0] == "headrace: broker did not start (exit status 1): disk is full"
    assert lines[1] == f"  See {tmp_path / 'data' / 'logs' / 'broker.log'}"


def test_a_broker_that_is_not_there_is_named(tmp_path: Path) -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    lines = refused_up(tmp_path / "data", "--nats", url)
    assert lines[0].startswith(f"headrace: no NATS server answers at {url}")
    assert lines[1] == "  Check --nats and that the server runs, or leave --nats away to use the embedded one"


async def test_up_with_a_broker_of_ones_own_leaves_it_alone(tmp_path: Path, broker: BrokerProcess) -> None:
    with start_mesh(tmp_path, "fast", "--nats", broker.url) as mesh:
        assert mesh.endpoints.nats == broker.url
        assert "broker" not in mesh.endpoints.processes
        told = json.loads(headrace("status", "--json", "--data", str(mesh.data)).stdout)
        assert told["profile"] == "fast (assumed)"
    assert broker.process is not None
    assert broker.process.returncode is None


async def test_two_gateways_side_by_side(tmp_path: Path) -> None:
    with start_mesh(tmp_path, "fast", "--gateways", "2") as mesh:
        assert len(set(mesh.endpoints.gateways)) == 2
        assert all(_answers(address) for address in mesh.endpoints.gateways)


def test_wrong_usage_is_status_2(tmp_path: Path) -> None:
    done = headrace("up", "--data", str(tmp_path), "--profile", "quick")
    assert done.returncode == 2
    assert "'quick' is not one of 'durable', 'fast'" in done.stderr


def test_a_data_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.touch()
    done = headrace("up", "--data", str(file))
    assert done.returncode == 1
    assert done.stderr.startswith(f"headrace: data: '{file}' cannot be used: ")


def test_a_run_directory_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    directory = locate(tmp_path / "data")
    directory.run.mkdir(parents=True)
    directory.run.chmod(0o777)
    try:
        lines = refused_up(tmp_path / "data")
        assert "is not a directory that belongs to you alone" in lines[0]
    finally:
        shutil.rmtree(directory.run)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_no_command(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "headrace.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0
    assert "headrace" in done.stdout
    for heavy in ("grpc", "nats", "asyncio", "rich", "headrace.cli.up", "headrace.cli.flow"):
        assert f" {heavy}\n" not in done.stderr, heavy


async def test_ctrl_c_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for moment in ("lock", "logs/broker.log", "logs/orchestrator.log"):
        with open(tmp_path / "out", "wb") as out:
            process = subprocess.Popen(up_command(data), stdout=out, stderr=out, start_new_session=True)  # noqa: ASYNC220
        try:
            await eventually(lambda moment=moment: (data / moment).exists())
            process.send_signal(signal.SIGINT)
            assert process.wait(10) in (0, 130)
        finally:
            process.kill()
            process.wait(5)
        assert processes_with(MESH_VARIABLE, str(data)) == []
        assert lock_holder(locate(data)) == 0
        assert "Traceback" not in (tmp_path / "out").read_text()
        shutil.rmtree(data)


async def test_status_while_the_api_is_away_shows_the_rest(module_mesh: RunningMesh) -> None:
    module_mesh.kill("orchestrator", number=signal.SIGSTOP)
    done = headrace("status", "--data", str(module_mesh.data))
    assert done.returncode == 3
    assert "gateway" in done.stdout
    assert done.stderr.startswith("headrace: ")
    module_mesh.kill("orchestrator")
