"""The NATS client protocol (docs.nats.io, reference, client protocol): what a server sends, and the lines of a client.

Pure: bytes in, a list of frames out, so that whoever reads a socket handles all that one read brought at once.
"""

from __future__ import annotations

import json
from typing import Any

CRLF = b"\r\n"
PING, PONG = b"PING\r\n", b"PONG\r\n"
MAX_LINE = 1024 * 1024
"""Of a control line; the longest is INFO, which lists the servers of a cluster."""
MAX_MESSAGE = 128 * 1024 * 1024
"""Of a message with its headers; a server allows 64 MiB at most."""

# sid, subject, reply, payload, header block (None without one); sid 0: the verb and its text as subject and payload.
Frame = tuple[int, bytes, bytes, bytes, bytes | None]
CONTROL = 0


class ProtocolError(Exception):
    """The other side does not speak NATS, or a message was cut: the connection is of no use any more."""


class FrameReader:
    """Cuts a stream of bytes into frames; keeps what is not whole yet."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self._needed = 0

    def feed(self, data: bytes) -> list[Frame]:
        """All frames that are whole now, in order. ProtocolError ends the reader."""
        if self._parts:
            self._parts.append(data)
            self._held += len(data)
            # A large payload comes in many reads: it is joined once, when the last of it is there.
            if self._held < self._needed:
                return []
            data = b"".join(self._parts)
            self._parts.clear()
        frames: list[Frame] = []
        rest = self._cut(data, frames)
        self._held = len(data) - rest
        if self._held:
            self._parts.append(data[rest:] if rest else data)
        return frames

    def _cut(self, data: bytes, frames: list[Frame]) -> int:
        """Where the first frame begins that is not whole; `_needed` is how many bytes it has at least."""
        at, size = 0, len(data)
        find, add = data.find, frames.append
        frame: Frame
        self._needed = 0
        try:
            while at < size:
                line_end = find(CRLF, at)
                if line_end < 0:
                    if size - at > MAX_LINE:
                        raise ProtocolError(f"a line of over {MAX_LINE} bytes")
                    return at
                begin = line_end + 2
                words = data[at:line_end].split(b" ")
                count = len(words)
                if count == 6 and words[0] == b"HMSG":
                    _, subject, sid, reply, head, whole = words
                    body, end = begin + int(head), begin + int(whole)
                    if not begin <= body <= end:
                        raise ValueError
                    frame = int(sid), subject, reply, data[body:end], data[begin:body]
                elif count == 4 and words[0] == b"MSG":
                    _, subject, sid, whole = words
                    end = begin + int(whole)
                    if end < begin:
                        raise ValueError
                    frame = int(sid), subject, b"", data[begin:end], None
                elif data[at] in _MESSAGES:
                    frame, end = _message(data, data[at:line_end].split(), begin)
                else:
                    verb, _, text = data[at:line_end].partition(b" ")
                    add((CONTROL, verb.upper(), b"", text.strip(), None))
                    at = begin
                    continue
                if size < end + 2:
                    if end - begin > MAX_MESSAGE:
                        raise ValueError
                    self._needed = end + 2 - at
                    return at
                if data[end : end + 2] != CRLF:
                    raise ProtocolError("a message does not end where it says")
                add(frame)
                at = end + 2
        except (ValueError, IndexError) as error:
            raise ProtocolError(f"a line that cannot be read: {data[at : at + 80]!r}") from error
        return at


_MESSAGES = b"MH"


def _message(data: bytes, words: list[bytes], begin: int) -> tuple[Frame, int]:
    """A message whose line is none of the two usual ones, and where it ends."""
    end = begin + int(words[-1])
    if end >= begin:
        if words[0] == b"MSG" and 4 <= len(words) <= 5:
            return (int(words[2]), words[1], words[3] if len(words) == 5 else b"", data[begin:end], None), end
        body = begin + int(words[-2])
        if words[0] == b"HMSG" and 5 <= len(words) <= 6 and begin <= body <= end:
            reply = words[3] if len(words) == 6 else b""
            return (int(words[2]), words[1], reply, data[body:end], data[begin:body]), end
    raise ProtocolError(f"a line that cannot be read: {b' '.join(words)[:80]!r}")


def read_info(text: bytes) -> dict[str, Any]:
    """What a server says of itself. ProtocolError if it is no object."""
    try:
        info = json.loads(text)
    except ValueError as error:
        raise ProtocolError(f"INFO cannot be read: {text[:80]!r}") from error
    if not isinstance(info, dict):
        raise ProtocolError(f"INFO cannot be read: {text[:80]!r}")
    return info


def connect_line(options: dict[str, Any]) -> bytes:
    """The CONNECT of a client that takes headers and wants to hear when nobody listens."""
    asked = {"verbose": False, "pedantic": False, "protocol": 1, "headers": True, "no_responders": True, **options}
    return b"CONNECT " + json.dumps(asked).encode() + CRLF
