"""What leaves in one turn leaves whole and in order, however large it is."""

from __future__ import annotations

import asyncio
import socket

import pytest

from headrace.edge.heap import keep_freed_memory
from headrace.edge.joined_writes import LARGE_BYTES, write_together


@pytest.mark.parametrize("sizes", [[5], [3, 1, 4], [LARGE_BYTES, 1], [7, 1, LARGE_BYTES // 2] * 40])
async def test_pieces_arrive_in_order(sizes: list[int]) -> None:
    pieces = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    whole = b"".join(pieces)
    here, there = socket.socketpair()
    reader, other = await asyncio.open_connection(sock=there)
    _, writer = await asyncio.open_connection(sock=here)
    write_together(writer.transport, pieces)
    pieces.clear()
    writer.write(b"!")
    async with asyncio.timeout(10):
        assert await reader.readexactly(len(whole) + 1) == whole + b"!"
    writer.close()
    other.close()


def test_the_heap_is_told() -> None:
    keep_freed_memory()
    assert len(b"".join([b"x" * 65_536] * 64)) == 64 * 65_536
