"""Who watches a status hears of work when it begins, and nothing while there is none."""

from __future__ import annotations

import asyncio

from services.sidecar.status_board import StatusBoard

SOON_S = 0.02


async def test_work_that_came_before_the_wait_is_not_missed() -> None:
    board = StatusBoard()
    board.expect_work()
    board.work_came()
    assert await board.changed_or_work(board.version, 5.0)


async def test_work_and_changes_end_the_wait_and_rest_does_not() -> None:
    board = StatusBoard()
    board.expect_work()
    assert not await board.changed_or_work(board.version, SOON_S)
    asyncio.get_running_loop().call_later(SOON_S, board.work_came)
    assert await board.changed_or_work(board.version, 5.0)
    board.expect_work()
    asyncio.get_running_loop().call_later(SOON_S, board.touch)
    assert not await board.changed_or_work(board.version, 5.0)
