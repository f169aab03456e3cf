"""Child processes and their supervision, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from headrace.edge.child_process import ChildProcess, Command, describe_exit
from headrace.edge.process_table import is_running, processes_with
from headrace.edge.supervised import ProcessState, Supervised, bound_log, restart_delay_s
from headrace.model.errors import Unavailable
from tests.support.eventually import eventually

READY = "import json, os; os.write(int(os.environ['HEADRACE_READY_FD']), b'{\"address\": \"here\"}\\n'); "
STAY = "import signal; signal.pause()"


def python(code: str, log_file: Path | None = None, **environment: str) -> Command:
    return Command((sys.executable, "-I", "-S", "-c", code), environment, log_file=log_file)


async def test_a_child_reports_ready_and_its_end() -> None:
    child = ChildProcess.spawn(python(READY + "raise SystemExit(7)"), readiness=True)
    assert await child.ready(5) == {"address": "here"}
    assert await child.wait() == 7


async def test_a_child_that_ends_first_is_seen_at_once() -> None:
    child = ChildProcess.spawn(python("raise SystemExit(7)"), readiness=True)
    with pytest.raises(ConnectionError):
        await child.ready(5)
    assert await child.wait() == 7


async def test_end_takes_the_whole_group_also_after_the_leader_is_gone(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        "if child == 0: signal.pause()\n"
        "print(child, flush=True)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "signal.pause()\n"
    )
    log_file = tmp_path / "log"
    child = ChildProcess.spawn(python(code, log_file))
    member = int(await eventually(lambda: log_file.read_text().strip()))
    assert await child.end(2) == -signal.SIGTERM
    assert not is_running(member)


async def test_output_reaches_the_callback() -> None:
    chunks: list[bytes] = []
    command = Command((sys.executable, "-I", "-S", "-c", "print('hello')"), on_output=chunks.append)
    child = ChildProcess.spawn(command)
    await child.wait()
    await eventually(lambda: b"".join(chunks) == b"hello\n")


async def test_what_cannot_be_started_is_named() -> None:
    with pytest.raises(Unavailable, match="/no/such/program cannot be started"):
        ChildProcess.spawn(Command(("/no/such/program",)))


async def test_no_descriptor_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        child = ChildProcess.spawn(python("pass"), readiness=True)
        await child.wait()
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the loop may open one of its own, once


async def test_kill_of_a_supervised_process_starts_another_and_stop_ends_it() -> None:
    states: list[ProcessState] = []
    process = Supervised("stay", lambda: python(READY + STAY), on_change=lambda: states.append(process.state))
    process.start()
    await process.started()
    first = process.pid
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: process.state is ProcessState.UP and process.pid != first)
    assert (process.starts, process.last_exit, process.address) == (2, "killed by SIGKILL", "here")
    second = process.pid
    await process.stop(2)
    assert not is_running(second)
    assert process.state is ProcessState.ENDED
    assert ProcessState.BACKING_OFF in states
    assert states[-2:] == [ProcessState.STOPPING, ProcessState.ENDED]


async def test_a_first_run_that_fails_says_why(tmp_path: Path) -> None:
    command = python("import sys; sys.exit('port 7001 is taken')", tmp_path / "log")
    process = Supervised("registry", lambda: command)
    process.start()
    with pytest.raises(Unavailable, match=r"registry did not start \(exit status 1\): port 7001 is taken"):
        await process.started()
    await process.stop(1)


async def test_a_crash_loop_waits_longer_each_time_and_stop_ends_the_wait() -> None:
    process = Supervised("crash", lambda: python("raise SystemExit(1)"))
    process.start()
    await eventually(lambda: process.starts >= 3)
    async with asyncio.timeout(2):
        await process.stop(1)
    assert process.state is ProcessState.ENDED


async def test_a_process_that_never_becomes_ready_is_ended_and_started_again() -> None:
    process = Supervised("mute", lambda: python(STAY), ready_limit_s=0.2)
    process.start()
    await eventually(lambda: process.starts >= 2)
    await process.stop(1)


async def test_a_foreign_program_dies_with_us(tmp_path: Path) -> None:
    code = (
        "import asyncio, signal, sys\n"
        "from headrace.edge.child_process import ChildProcess, Command\n"
        "async def main():\n"
        "    ChildProcess.spawn(Command(('sleep', '600'), {'TEST_TIED': sys.argv[1]}, foreign=True))\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = ChildProcess.spawn(Command((sys.executable, "-c", code, str(tmp_path))))
    await eventually(lambda: len(processes_with("TEST_TIED", str(tmp_path))) == 1)
    parent.signal(signal.SIGKILL)
    await eventually(lambda: processes_with("TEST_TIED", str(tmp_path)) == [], within_s=2)
    await parent.wait()


def test_back_off_doubles_from_100_ms_to_5_s() -> None:
    assert [restart_delay_s(failures) for failures in range(1, 9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert restart_delay_s(10_000) == 5.0


def test_exits_are_described() -> None:
    assert describe_exit(3) == "exit status 3"
    assert describe_exit(-signal.SIGSEGV) == "killed by SIGSEGV"


def test_a_log_past_its_limit_begins_anew(tmp_path: Path) -> None:
    log_file = tmp_path / "registry.log"
    with open(log_file, "ab") as writer:
        writer.write(b"x" * 200)
        writer.flush()
        bound_log(log_file, limit_bytes=100)
        writer.write(b"y")
    assert log_file.read_bytes() == b"y"
    assert (tmp_path / "registry.log.1").read_bytes() == b"x" * 200


async def test_a_first_run_that_fails_for_want_of_another_is_excused(tmp_path: Path) -> None:
    needed = tmp_path / "broker"
    code = f"import os; os.path.exists({str(needed)!r}) or os._exit(1); {READY}{STAY}"
    process = Supervised("registry", lambda: python(code))
    process.start()
    waiting = asyncio.ensure_future(process.started(lambda: not needed.exists()))
    await eventually(lambda: process.starts >= 2)
    needed.touch()
    async with asyncio.timeout(5):
        assert (await waiting)["address"] == "here"
    await process.stop(1)


async def test_what_was_missing_may_come_before_the_end_of_the_run_is_seen(tmp_path: Path) -> None:
    needed = tmp_path / "broker"
    first_run = f"os.path.exists({str(needed)!r}) or (open({str(needed)!r}, 'w').close(), os._exit(1))"
    code = f"import os; {first_run}; {READY}{STAY}"
    process = Supervised("registry", lambda: python(code))
    process.start()
    async with asyncio.timeout(5):
        assert (await process.started(lambda: not needed.exists()))["address"] == "here"
    assert process.starts == 2
    await process.stop(1)
