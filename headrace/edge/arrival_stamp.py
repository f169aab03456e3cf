"""When bytes arrived at a socket, by the kernel's own stamp (Linux: SO_TIMESTAMPNS, which TCP has since 4.14).

A process that is told of bytes has already waited for a processor and for its own loop. The kernel stamps the
bytes as they come in, so that this wait can be measured and need not be guessed.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys

# Not named by the socket module; the same on x86 and ARM, with 64-bit seconds since both know no others here.
_SO_TIMESTAMPNS = 35
_STAMP = struct.Struct("qq")
ANCILLARY_BYTES = socket.CMSG_SPACE(_STAMP.size)

Ancillary = list[tuple[int, int, bytes]]


def stamp_arrivals(connection: socket.socket) -> bool:
    """Asks for stamps on what arrives from now on; False where the system has none. Accepted sockets inherit it."""
    if sys.platform != "linux" or _STAMP.size != 16:
        return False
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        return True
    return False


def arrived_at_unix_ns(ancillary: Ancillary) -> int:
    """The stamp that came with `recvmsg`: of the last of the bytes it gave; 0 where there is none."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) == _STAMP.size:
            seconds, nanoseconds = _STAMP.unpack(data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return 0


class ArrivalPeek:
    """Stamps of bytes that wait unread on a connection somebody else owns and reads.

    `release` before the owner closes the connection; it stays open.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)

    def first_unix_ns(self) -> int:
        """When the first unread byte arrived; 0 for none, or without a stamp. Takes about 2 µs."""
        try:
            _, ancillary, _, _ = self._socket.recvmsg(1, ANCILLARY_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return 0
        return arrived_at_unix_ns(ancillary)

    def release(self) -> None:
        self._socket.detach()
