"""The process of a served component: how it ends, with whom, and what it says of itself before it serves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import psutil
import pytest

from tests.support.eventually import eventually
from tests.support.served_component import CODE, ROOT, served


@pytest.mark.parametrize(
    ("code", "entrypoint", "last_line"),
    [
        ("import nowhere_to_be_found", "component:component", "ModuleNotFoundError: No module named 'nowhere"),
        ("x = = 1", "component:component", "SyntaxError"),
        ("raise SystemExit('stop')", "component:component", "SystemExit: stop"),
        (CODE, "component:other", "'other' is nothing, not a headrace.sdk.Component"),
        (CODE, "missing:component", "the bundle has no module 'missing'"),
        ("from headrace.sdk import Component\ncomponent = Component()", "component:component", "has no function"),
    ],
)
def test_code_that_does_not_load_ends_with_status_3(code: str, entrypoint: str, last_line: str, tmp_path: Path) -> None:
    (tmp_path / "component.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "headrace.sdk.serve", "--bundle", str(tmp_path), "--entrypoint", entrypoint],
        env={**os.environ, "HEADRACE_COMPONENT_SOCKET": str(tmp_path / "s")},
        capture_output=True, text=True, timeout=20, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 3
    assert last_line in done.stderr.splitlines()[-1]
    assert not (tmp_path / "s").exists()


async def test_sigterm_runs_the_shutdown_hook(tmp_path: Path) -> None:
    async with served(tmp_path / "b") as it:
        await it.init("work")
        it.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(it.process.wait, 5) == 0
        assert "goodbye" in it.output.read_text()


PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-m", "headrace.sdk.serve", "--bundle", sys.argv[1], "--entrypoint", "component:component"],
    env={**os.environ, "HEADRACE_PARENT_PID": str(os.getpid()), "HEADRACE_COMPONENT_SOCKET": sys.argv[2]},
)
print(child.pid, flush=True)
time.sleep(60)  # tidy: pace
"""


def start_parent(folder: Path, socket: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PARENT, str(folder), str(socket)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


async def test_the_component_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "component.py").write_text(CODE)
    socket = tmp_path / "s"
    parent = start_parent(tmp_path, socket)
    try:
        assert parent.stdout is not None
        child = int(await asyncio.to_thread(parent.stdout.readline))
        await eventually(lambda: socket.exists())
    finally:
        parent.kill()
        await asyncio.to_thread(parent.wait, 5)
        assert parent.stdout is not None
        parent.stdout.close()

    def gone() -> bool:
        return not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE

    await eventually(gone)


def test_describe(tmp_path: Path) -> None:
    (tmp_path / "component.yaml").write_text("name: a\nfunctions: {work: {kind: action}}\n")
    (tmp_path / "component.py").write_text("print('noise')\n" + CODE)
    done = subprocess.run(
        [sys.executable, "-m", "headrace.sdk.describe", str(tmp_path)], capture_output=True, timeout=20, cwd=ROOT
    )
    described = json.loads(done.stdout)
    assert described["work"] == {"kind": "action", "in": {"type": "object"}, "out": None}
    assert described["poll"] == {"kind": "listener", "in": None, "out": None}
