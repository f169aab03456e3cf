"""The watch over a component's processes, on real ones: it rests while nothing happens, and sees what begins."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from headrace.edge.process_table import activity_of
from services.sidecar.process_watch import MEBIBYTE, Excess, ProcessLimits, ProcessWatch
from tests.support.eventually import eventually

# Does as it is told: `fork` starts three processes, `grow` takes 64 MiB.
PROGRAM = """
import subprocess, sys
held = []
print("ready", flush=True)
for line in sys.stdin:
    if line == "fork\\n":
        held += [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(3)]
    else:
        held.append(bytearray(b"x") * (64 << 20))
"""


@pytest.fixture
def component() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


async def excess_of(watch: ProcessWatch, within_s: float) -> Excess | None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            return await watch.run()
    return None


@pytest.mark.parametrize(("order", "reason"), [("fork", "PROCESS_LIMIT"), ("grow", "MEMORY_LIMIT")])
async def test_what_a_resting_component_begins_by_itself_is_seen(
    component: subprocess.Popen[str], order: str, reason: str
) -> None:
    watch = ProcessWatch(
        component.pid, ProcessLimits(50 * MEBIBYTE, 2), lambda: False, idle_look_s=0.1, rest_look_s=0.1
    )
    watching = asyncio.create_task(excess_of(watch, 15.0))
    await eventually(lambda: watch.resting)
    assert component.stdin is not None
    component.stdin.write(f"{order}\n")
    component.stdin.flush()
    found = await watching
    assert found is not None
    assert found.reason == reason


async def test_work_wakes_it(component: subprocess.Popen[str]) -> None:
    busy = False
    watch = ProcessWatch(component.pid, ProcessLimits(0, 1), lambda: busy, idle_look_s=0.1, rest_look_s=600.0)
    watching = asyncio.create_task(excess_of(watch, 15.0))
    await eventually(lambda: watch.resting)
    busy = True
    watch.work_came()
    assert component.stdin is not None
    component.stdin.write("fork\n")
    component.stdin.flush()
    found = await watching
    assert found is not None
    assert found.reason == "PROCESS_LIMIT"


def test_a_process_that_is_gone_has_no_activity() -> None:
    assert activity_of(2**22 + 1) == ""
