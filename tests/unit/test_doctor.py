"""What `headrace doctor` finds: each trouble is made, and each finding says what to do."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from headrace.cli import doctor_checks, main
from headrace.cli.doctor_checks import ERROR, OK, WARNING, Finding, all_checks
from headrace.edge.data_directory import MESH_VARIABLE, DataDirectory

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def directory(tmp_path: Path) -> DataDirectory:
    return DataDirectory(tmp_path / "data")


def troubled(finding: Finding, state: str, *words: str) -> None:
    assert finding.state == state, finding
    assert finding.next_step, finding
    assert [word for word in words if word not in finding.found + finding.next_step] == []


def test_a_sound_machine_has_no_errors(directory: DataDirectory) -> None:
    findings = [check() for check in all_checks(directory)]
    assert [finding for finding in findings if finding.state == ERROR] == []
    assert [finding for finding in findings if finding.state != OK and not finding.next_step] == []


def test_a_data_directory_that_cannot_be_used(directory: DataDirectory) -> None:
    directory.path.write_text("a file")
    troubled(doctor_checks.check_data(directory), ERROR, str(directory.path))


def test_a_data_directory_of_a_newer_version(directory: DataDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    directory.path.mkdir()
    directory.layout_file.write_text("2\n")
    troubled(doctor_checks.check_data(directory), ERROR, "layout 2", "newer Headrace")
    assert main.run(["up", "--data", str(directory.path)]) == 1
    assert "newer Headrace" in capsys.readouterr().err
    assert [path.name for path in directory.path.iterdir()] == ["layout"]  # nothing was made
    directory.layout_file.write_text("1\n")
    assert "layout 1" in doctor_checks.check_data(directory).found


def test_a_port_of_the_last_run_that_is_taken(directory: DataDirectory) -> None:
    directory.path.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        directory.write_ports({"orchestrator": port})
        troubled(doctor_checks.check_ports(directory), WARNING, f"{port} (orchestrator)")
    assert doctor_checks.check_ports(directory).state == OK


def test_a_clock_that_was_set_back(directory: DataDirectory) -> None:
    directory.path.mkdir()
    directory.write_ports({})
    os.utime(directory.ports_file, (time.time() + 3600, time.time() + 3600))
    troubled(doctor_checks.check_clock(directory), WARNING, "set back")


def test_little_room(directory: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state in ((1 << 20, ERROR), (1 << 30, WARNING)):
        monkeypatch.setattr(doctor_checks.shutil, "disk_usage", lambda _, free=free: Usage(1 << 40, 0, free))
        troubled(doctor_checks.check_disk(directory), state, "free")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    troubled(doctor_checks.check_limits(), WARNING, "ulimit -n")


def test_processes_that_a_mesh_left_behind(directory: DataDirectory) -> None:
    environment = {**os.environ, MESH_VARIABLE: str(directory.path)}
    command = [sys.executable, "-c", "print(1, flush=True); input()"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as left:
        assert left.stdout is not None
        left.stdout.readline()
        troubled(doctor_checks.check_orphans(directory), WARNING, f"kill -9 {left.pid}")
        left.kill()
    assert doctor_checks.check_orphans(directory).state == OK


def test_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "find_nats_server", lambda: "/bin/true")
    troubled(doctor_checks.check_broker(), ERROR, "reported no version")


def test_the_command_fails_where_there_is_an_error(
    directory: DataDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["doctor", "--data", str(directory.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    directory.path.write_text("a file")
    assert main.run(["doctor", "--data", str(directory.path)]) == 1
    assert "1 errors" in capsys.readouterr().out
