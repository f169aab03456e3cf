"""Frames of the NATS protocol: whatever way they are cut, as nats-py's own parser reads them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from headrace.wire.nats_protocol import CONTROL, Frame, FrameReader, ProtocolError, connect_line, read_info

words = st.text(alphabet="abcDEF019._-$*", min_size=1, max_size=12).map(str.encode)
bodies = st.binary(max_size=60)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    subject, sid, reply, body = draw(words), draw(st.integers(1, 10**9)), draw(st.none() | words), draw(bodies)
    to = b"%b %d %b" % (subject, sid, reply + b" " if reply else b"")
    if draw(st.booleans()):
        return b"MSG %b%d\r\n%b\r\n" % (to, len(body), body)
    head = b"NATS/1.0\r\n" + draw(st.sampled_from([b"", b"Nats-Msg-Id: x\r\n"])) + b"\r\n"
    return b"HMSG %b%d %d\r\n%b%b\r\n" % (to, len(head), len(head) + len(body), head, body)


controls = st.sampled_from(
    [b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'Slow Consumer'\r\n", b'INFO {"max_payload":7,"ldm":true}\r\n']
)
streams = st.lists(messages() | controls, max_size=12)


class Twin:
    """What nats-py calls its client for."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.frames.append((sid, bytes(subject), bytes(reply), data, headers))

    async def _process_ping(self) -> None:
        self.frames.append((CONTROL, b"PING", b"", b"", None))

    async def _process_pong(self) -> None:
        self.frames.append((CONTROL, b"PONG", b"", b"", None))

    async def _process_err(self, text: str) -> None:
        self.frames.append((CONTROL, b"-ERR", b"", text.encode(), None))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.frames.append((CONTROL, b"INFO", b"", json.dumps(info, separators=(",", ":")).encode(), None))


def as_the_twin_tells(frames: list[Frame]) -> list[Frame]:
    """nats-py says nothing of +OK, and tells errors in small letters."""
    kept = [frame for frame in frames if frame[1] != b"+OK" or frame[0] != CONTROL]
    return [(*frame[:3], frame[3].lower(), None) if frame[:2] == (CONTROL, b"-ERR") else frame for frame in kept]


@given(streams, st.data())
def test_any_cut_gives_the_frames_that_nats_py_reads(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    reader = FrameReader()
    ours = [frame for piece in pieces for frame in reader.feed(piece)]
    twin = Twin()
    asyncio.run(Parser(twin).parse(whole))
    assert as_the_twin_tells(ours) == twin.frames
    assert len(ours) == len(parts)


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_frames_or_an_error(garbage: bytes) -> None:
    reader = FrameReader()
    try:
        frames = reader.feed(garbage) + reader.feed(b"\r\n")
    except ProtocolError:
        return
    assert all(len(frame) == 5 for frame in frames)


@pytest.mark.parametrize(
    "line",
    [
        b"MSG a 1 3\r\nabcd\r\n",
        b"MSG a 1\r\n",
        b"MSG a b c d e 3\r\nabc\r\n",
        b"MSG a x 3\r\nabc\r\n",
        b"HMSG a 1 9 3\r\nabc\r\n",
        b"HMSG a 1 -9 3\r\nabc\r\n",
        b"MSG a 1 -3\r\nabc\r\n",
        b"MSG a 1 -2\r\nabc\r\n",
        b"MSG a 1 999999999999\r\nabc\r\n",
        b"MANY a 1 3\r\nabc\r\n",
    ],
)
def test_a_line_that_lies_ends_the_connection(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        FrameReader().feed(line + b"PING\r\n")


def test_a_line_without_end_is_not_kept_for_ever() -> None:
    reader = FrameReader()
    for _ in range(10):
        reader.feed(b"x" * 100_000)
    with pytest.raises(ProtocolError, match="a line of over"):
        reader.feed(b"x" * 100_000)


def test_a_large_body_in_many_reads_is_one_frame() -> None:
    body = bytes(range(256)) * 4096
    raw = b"MSG a.b 7 %d\r\n%b\r\nPING\r\n" % (len(body), body)
    reader = FrameReader()
    frames = [frame for at in range(0, len(raw), 1000) for frame in reader.feed(raw[at : at + 1000])]
    assert frames == [(7, b"a.b", b"", body, None), (CONTROL, b"PING", b"", b"", None)]


def test_info_that_is_no_object_is_refused() -> None:
    for text in (b"", b"[]", b"{"):
        with pytest.raises(ProtocolError):
            read_info(text)


def test_a_client_asks_for_headers_and_no_responders() -> None:
    asked = json.loads(connect_line({"name": "n", "user": "u"}).removeprefix(b"CONNECT "))
    assert asked["headers"] is asked["no_responders"] is True
    assert (asked["name"], asked["user"], asked["verbose"]) == ("n", "u", False)
