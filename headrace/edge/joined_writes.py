"""Many pieces in one write: joined while they are small, as they are where joining would copy much."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

LARGE_BYTES = 64 * 1024


def write_together(transport: asyncio.Transport, pieces: Sequence[bytes]) -> None:
    """`pieces` may be changed afterwards."""
    if len(pieces) == 1:
        transport.write(pieces[0])
    elif sum(map(len, pieces)) > LARGE_BYTES:
        transport.writelines(pieces)
    else:
        transport.write(b"".join(pieces))
