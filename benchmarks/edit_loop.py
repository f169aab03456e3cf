"""What a person waits for: the start of a command, and `headrace dev` from a save to the first answer by new code."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.mesh_bench import BenchMesh
from headrace.cli.skeleton import write_component

COMMAND = [sys.executable, "-m", "headrace.cli.main"]
RUNS = 7
SAVES = 5
LIMIT_S = 60.0


async def edit_loop(bench: BenchMesh) -> dict[str, Any]:
    """Commands and saves, one after another, on a mesh at rest."""
    data = str(bench.mesh.directory.path)
    return {
        "commands": {
            "--help": await asyncio.to_thread(_command, ["--help"]),
            "flow list": await asyncio.to_thread(_command, ["flow", "list", "--data", data]),
        },
        "save_to_answer_s": await _saves(data),
    }


def _command(words: list[str]) -> dict[str, float]:
    """Seconds of wall clock (the least and the median of seven) and of processor (the least)."""
    wall, cpu = [], []
    for _ in range(RUNS):
        began = time.monotonic()
        process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall.append(time.monotonic() - began)
        cpu.append(usage.ru_utime + usage.ru_stime)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, f"headrace {' '.join(words)} failed"
    figures = {"least_s": min(wall), "median_s": statistics.median(wall), "least_cpu_s": min(cpu)}
    return {name: round(value, 3) for name, value in figures.items()}


async def _saves(data: str) -> list[float]:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "bench-dev"
        write_component(folder)
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "dev", str(folder), "--data", data, "--json", "--no-logs", stdout=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                call = await _ran(process)
                return [await _save(folder / "component.py", call, number) for number in range(SAVES)]
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
            await process.wait()


async def _ran(process: asyncio.subprocess.Process) -> str:
    """The command that `dev` proposes as soon as the flow runs."""
    assert process.stdout is not None
    while line := await process.stdout.readline():
        event = json.loads(line)
        if event["event"] == "ran":
            return str(event["try"])
    raise AssertionError("headrace dev ended")


async def _save(code: Path, call: str, number: int) -> float:
    """Seconds from a save until the flow answers with it."""
    url, body, word = shlex.split(call)[-1], b'{"name": "Ada"}', f"Hello {number},"
    lines = code.read_text().splitlines()
    at = next(index for index, line in enumerate(lines) if "Hello" in line)
    lines[at] = lines[at][: lines[at].index("Hello")] + word + lines[at][lines[at].index(" {request") :]
    code.write_text("\n".join(lines) + "\n")
    began = time.monotonic()
    while word not in await asyncio.to_thread(_post, url, body):
        await asyncio.sleep(0.01)
    return round(time.monotonic() - began, 3)


def _post(url: str, body: bytes) -> str:
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
        return str(answer.read().decode())
