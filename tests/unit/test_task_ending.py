"""Tasks end also when a cancellation is lost, and one that never ends is left behind with a word in the log."""

from __future__ import annotations

import asyncio

import pytest

from headrace.edge.task_ending import end_tasks


async def _loses(cancellations: int) -> None:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancellations -= 1
            if cancellations < 0:
                raise


async def test_a_lost_cancellation_is_repeated() -> None:
    tasks = [asyncio.create_task(_loses(count)) for count in (0, 1, 2)]
    await asyncio.sleep(0)
    await end_tasks(tasks)
    assert all(task.cancelled() for task in tasks)


async def test_a_task_that_fails_while_it_ends_raises_nothing_here() -> None:
    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("broken")

    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    await end_tasks([task])
    assert task.done()


async def test_one_that_never_ends_is_named(caplog: pytest.LogCaptureFixture) -> None:
    task = asyncio.create_task(_loses(3), name="stubborn")
    await asyncio.sleep(0)
    await end_tasks([task], limit_s=0.05)
    assert not task.done()
    assert "a task does not end" in caplog.text
    await end_tasks([task])
