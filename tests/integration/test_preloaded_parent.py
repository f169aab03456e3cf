"""Processes forked from a preloaded parent: as good as executed ones for whoever starts, finds, ends and reaps them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.edge.child_process import ChildProcess, Command, adopt_orphans, own_module
from headrace.edge.preloaded_parent import PreloadedParent
from headrace.edge.process_table import children_of, environment_value, is_running
from tests.support.eventually import eventually

CHILD = "tests.support.forked_child"


@pytest.fixture
async def parent(tmp_path: Path) -> AsyncIterator[PreloadedParent]:
    adopt_orphans()
    parent = PreloadedParent(tmp_path / "z.sock", first=("asyncio",), later=("nats",), log_file=tmp_path / "zygote.log")
    parent.start()
    yield parent
    await parent.stop()


def command(tmp_path: Path, *arguments: str, **environment: str) -> Command:
    return Command(own_module(CHILD, *arguments), environment, log_file=tmp_path / "child.log")


def zygote_of(tmp_path: Path) -> int:
    return next(
        pid
        for pid in children_of(os.getpid())
        if str(tmp_path / "z.sock").encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


async def test_a_forked_process_is_what_a_spawned_one_would_be(parent: PreloadedParent, tmp_path: Path) -> None:
    long = "x" * 3000
    child = await parent.spawn(command(tmp_path, "wait", "a b", TEST_NAME="one", TEST_LONG=long))
    facts = await child.ready(10)
    assert facts["parent"] == os.getpid()
    assert facts["session"] == child.pid
    assert facts["environment"] == {"TEST_NAME": "one", "TEST_LONG": long}
    assert facts["arguments"] == ["wait", "a b"]
    assert facts["modules"] == ["asyncio", "nats"], "it was spawned, not forked"
    assert len(facts["descriptors"]) == 5  # type: ignore[arg-type]  # three, the readiness pipe, the listing itself
    shown = Path(f"/proc/{child.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    assert shown == [sys.executable.encode(), b"-P", b"-m", CHILD.encode(), b"wait", b"a b"]
    assert environment_value(child.pid, "TEST_NAME") == "one"
    assert environment_value(child.pid, "TEST_LONG") == long
    assert (tmp_path / "child.log").read_text() == "hello\n"
    assert await child.end(5) == -signal.SIGTERM
    assert not is_running(child.pid)


async def test_many_at_once_and_their_exits(parent: PreloadedParent, tmp_path: Path) -> None:
    children = await asyncio.gather(*(parent.spawn(command(tmp_path, "exit", str(n))) for n in range(12)))
    assert await asyncio.gather(*(child.wait() for child in children)) == list(range(12))
    await eventually(lambda: not set(children_of(os.getpid())) & {child.pid for child in children})


async def test_a_module_that_is_not_there_ends_with_its_reason(parent: PreloadedParent, tmp_path: Path) -> None:
    child = await parent.spawn(Command(own_module("tests.support.no_such"), {}, log_file=tmp_path / "child.log"))
    with pytest.raises(ConnectionError):
        await child.ready(10)
    assert await child.wait() == 1
    assert "no_such" in (tmp_path / "child.log").read_text()


async def test_without_its_parent_it_lives_on_and_others_are_spawned(parent: PreloadedParent, tmp_path: Path) -> None:
    first = await parent.spawn(command(tmp_path, "wait"))
    await first.ready(10)
    os.kill(zygote_of(tmp_path), signal.SIGKILL)
    second = await parent.spawn(command(tmp_path, "wait"))
    facts = await second.ready(10)
    assert is_running(first.pid)

    async def forks_again() -> bool:
        child = await parent.spawn(command(tmp_path, "wait"))
        modules = (await child.ready(10))["modules"]
        await child.end(5)
        return modules == ["asyncio", "nats"]

    await eventually(forks_again, within_s=15)
    assert facts["parent"] == os.getpid()
    await asyncio.gather(first.end(5), second.end(5))


async def test_a_parent_that_hangs_holds_nobody_up_and_what_it_forks_late_does_not_run(
    parent: PreloadedParent, tmp_path: Path
) -> None:
    await (await parent.spawn(command(tmp_path, "exit", "0"))).wait()
    zygote = zygote_of(tmp_path)
    os.kill(zygote, signal.SIGSTOP)
    child = await parent.spawn(command(tmp_path, "wait", TEST_NAME="hung"))
    assert (await child.ready(10))["modules"] == ["asyncio"], "it was not spawned"
    os.kill(zygote, signal.SIGCONT)
    again = await parent.spawn(command(tmp_path, "exit", "0"))  # answered after what was forked too late
    await again.wait()
    await eventually(lambda: [pid for pid in children_of(os.getpid()) if _is(pid, "hung")] == [child.pid])
    await child.end(5)


def _is(pid: int, name: str) -> bool:
    return is_running(pid) and environment_value(pid, "TEST_NAME") == name


async def test_it_dies_with_who_started_it(tmp_path: Path) -> None:
    """kill -9 of the one that asked: neither the preloaded parent nor what it forked is left."""
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from headrace.edge.child_process import Command, adopt_orphans, own_module\n"
        "from headrace.edge.preloaded_parent import PreloadedParent\n"
        "from headrace.edge.readiness import report_ready\n"
        "async def main():\n"
        "    adopt_orphans()\n"
        "    parent = PreloadedParent(Path(sys.argv[1]), first=('asyncio',), later=(), log_file=None)\n"
        "    parent.start()\n"
        f"    child = await parent.spawn(Command(own_module('{CHILD}', 'wait')))\n"
        "    facts = await child.ready(10)\n"
        "    report_ready({'child': facts['pid']})\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    asker = ChildProcess.spawn(Command((sys.executable, "-c", code, str(tmp_path / "z.sock"))), readiness=True)
    child = int(str((await asker.ready(20))["child"]))
    below = children_of(asker.pid)
    assert child in below
    assert len(below) == 2
    asker.signal(signal.SIGKILL)
    await asker.wait()
    await eventually(lambda: not any(is_running(pid) for pid in below))
