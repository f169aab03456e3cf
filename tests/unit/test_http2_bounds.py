"""What a peer may not do on an HTTP/2 connection, and that no bytes do more than end it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.wire import grpc_status
from headrace.wire import http2_frames as h2
from headrace.wire.http2_connection import MAX_FRAME, STREAM_WINDOW, Http2Connection
from headrace.wire.http2_frames import ConnectionFault, frame, message_header, message_prefix
from headrace.wire.http2_frames import settings as settings_frame
from headrace.wire.http2_headers import write_headers
from tests.unit.test_http2_twin import Owner

SETTINGS = settings_frame({})
ANSWER = frame(h2.HEADERS, h2.END_HEADERS, 1, write_headers(grpc_status.answer_headers()))
TRAILERS = frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, write_headers(grpc_status.trailers(0)))
REQUEST = frame(h2.HEADERS, h2.END_HEADERS, 1, write_headers(grpc_status.request_headers("/a.B/C")))
HEADERS_BEGUN = frame(h2.HEADERS, 0, 1, b"")


def data(body: bytes, stream: int = 1) -> bytes:
    return message_header(len(body), stream) + body


def byte_by_byte(connection: Http2Connection, sent: bytes) -> None:
    for number in range(len(sent)):
        connection.feed(sent[number : number + 1])


def client() -> tuple[Http2Connection, Owner]:
    owner, ours = Owner(), Http2Connection(max_message=1000)
    ours.open(owner, grpc_status.request_headers("/a.B/C"))
    return ours, owner


def server() -> tuple[Http2Connection, list[Owner]]:
    owners: list[Owner] = []

    def accept(stream: Any) -> Owner:
        owners.append(Owner())
        return owners[-1]

    return Http2Connection(max_message=1000, accept=accept, max_streams=2), owners


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(h2.PING, 0, 0, bytes(8)), h2.PROTOCOL_ERROR),  # before SETTINGS
        (SETTINGS + frame(h2.PING, 0, 0, bytes(7)), h2.FRAME_SIZE_ERROR),
        (SETTINGS + frame(h2.PING, 0, 1, bytes(8)), h2.PROTOCOL_ERROR),
        (SETTINGS + frame(h2.SETTINGS, 0, 0, bytes(5)), h2.FRAME_SIZE_ERROR),
        (SETTINGS + frame(h2.SETTINGS, h2.ACK, 0, bytes(6)), h2.FRAME_SIZE_ERROR),
        (SETTINGS + frame(h2.SETTINGS, 0, 3), h2.PROTOCOL_ERROR),
        (settings_frame({h2.MAX_FRAME_SIZE: 100}), h2.PROTOCOL_ERROR),
        (settings_frame({h2.INITIAL_WINDOW_SIZE: 1 << 31}), h2.FLOW_CONTROL_ERROR),
        (settings_frame({h2.ENABLE_PUSH: 1}), h2.PROTOCOL_ERROR),
        (SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", h2.FRAME_SIZE_ERROR),
        (SETTINGS + frame(h2.PUSH_PROMISE, 0, 1, bytes(8)), h2.PROTOCOL_ERROR),
        (SETTINGS + frame(h2.WINDOW_UPDATE, 0, 0, bytes(4)), h2.PROTOCOL_ERROR),
        (SETTINGS + 2 * h2.window_update(0, (1 << 31) - 1), h2.FLOW_CONTROL_ERROR),
        (SETTINGS + 2 * h2.window_update(1, (1 << 31) - 1), h2.FLOW_CONTROL_ERROR),
        (SETTINGS + frame(h2.DATA, 0, 3, b"x"), h2.PROTOCOL_ERROR),
        (SETTINGS + frame(h2.DATA, 0, 0, b"x"), h2.PROTOCOL_ERROR),
        (SETTINGS + ANSWER + frame(h2.DATA, h2.PADDED, 1, b"\x05abc"), h2.PROTOCOL_ERROR),
        (SETTINGS + frame(h2.HEADERS, h2.END_HEADERS, 0, b""), h2.PROTOCOL_ERROR),
        (SETTINGS + frame(h2.HEADERS, h2.END_HEADERS, 2, b""), h2.PROTOCOL_ERROR),
        (SETTINGS + frame(h2.HEADERS, h2.END_HEADERS | h2.WITH_PRIORITY, 1, b"abc"), h2.FRAME_SIZE_ERROR),
        (SETTINGS + frame(h2.HEADERS, h2.END_HEADERS, 1, b"\xff\xff"), h2.COMPRESSION_ERROR),
        (SETTINGS + frame(h2.HEADERS, h2.END_HEADERS, 1, b"\xbe"), h2.COMPRESSION_ERROR),
        (SETTINGS + HEADERS_BEGUN + data(b"x"), h2.PROTOCOL_ERROR),
        (SETTINGS + HEADERS_BEGUN + frame(h2.CONTINUATION, h2.END_HEADERS, 3), h2.PROTOCOL_ERROR),
        (SETTINGS + frame(h2.CONTINUATION, h2.END_HEADERS, 1), h2.PROTOCOL_ERROR),
        (SETTINGS + HEADERS_BEGUN + 80 * frame(h2.CONTINUATION, 0, 1), h2.ENHANCE_YOUR_CALM),
        (SETTINGS + HEADERS_BEGUN + 5 * frame(h2.CONTINUATION, 0, 1, bytes(16_000)), h2.ENHANCE_YOUR_CALM),
        (SETTINGS + frame(h2.RST_STREAM, 0, 1, bytes(3)), h2.FRAME_SIZE_ERROR),
        (SETTINGS + frame(h2.GOAWAY, 0, 0, bytes(7)), h2.FRAME_SIZE_ERROR),
        (SETTINGS + frame(h2.PRIORITY, 0, 1, bytes(4)), h2.FRAME_SIZE_ERROR),
    ],
)
def test_what_ends_the_connection(sent: bytes, code: int) -> None:
    whole, _ = client()
    with pytest.raises(ConnectionFault) as fault:
        whole.feed(sent)
    assert fault.value.code == code
    in_bytes, _ = client()
    with pytest.raises(ConnectionFault) as again:
        byte_by_byte(in_bytes, sent)
    assert str(again.value) == str(fault.value)


def test_what_a_server_refuses() -> None:
    for sent in (
        b"GET / HTTP/1.1\r\n",
        h2.PREFACE + SETTINGS + REQUEST.replace(b"\x01\x04\0\0\0\x01", b"\x01\x04\0\0\0\x02"),
    ):
        with pytest.raises(ConnectionFault):
            server()[0].feed(sent)
    ours, owners = server()
    streams = [frame(h2.HEADERS, h2.END_HEADERS, number, REQUEST[9:]) for number in (1, 3, 5, 7)]
    ours.feed(h2.PREFACE + SETTINGS + b"".join(streams))
    assert len(owners) == len(ours.streams) == 2
    assert ours.out[-2:] == [h2.reset(5, h2.REFUSED_STREAM), h2.reset(7, h2.REFUSED_STREAM)]
    ours.feed(data(b"x", 5) + data(b"y", 3))  # what was sent before the refusal was read
    assert owners[1].messages == [b"y"]


def test_windows_hold_a_peer_that_sends_on() -> None:
    ours, owners = server()
    ours.max_message = MAX_FRAME
    ours.feed(h2.PREFACE + SETTINGS + REQUEST)
    owners[0].behind = True
    ours.out.clear()
    part = data(bytes(100_000))
    for _ in range(STREAM_WINDOW // len(part)):
        ours.feed(part)
    with pytest.raises(ConnectionFault, match="window of the stream"):
        ours.feed(part)
    assert ours.out == [], "who is behind gives no window"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (message_prefix(1001), "a message of 1001 bytes, more than 1000"),
        (b"\x01\0\0\0\x01x", "a compressed message"),
        (message_prefix(5) + b"abc", "a message that was cut short"),
    ],
)
def test_messages_that_are_refused(sent: bytes, told: str) -> None:
    ours, owner = client()
    ours.feed(SETTINGS + ANSWER + frame(h2.DATA, h2.END_STREAM, 1, message_prefix(2) + b"ok" + sent))
    assert owner.messages == [b"ok"]
    assert owner.told[0] == told


def test_after_goodbye_a_stream_lives_on_unless_it_is_above() -> None:
    ours, owner = client()
    ours.feed(SETTINGS + ANSWER + h2.go_away(1, 0, "bye") + data(b"x"))
    assert (owner.messages, owner.told) == ([b"x"], [])
    ours, owner = client()
    ours.feed(SETTINGS + h2.go_away(0, 0, "bye"))
    assert owner.told == [h2.REFUSED_STREAM]
    assert ours.going_away == (0, "bye")


TO_CLIENT = [SETTINGS, ANSWER, data(b"abc"), data(b""), data(bytes(900)), frame(h2.PING, 0, 0, bytes(8)), TRAILERS,
             h2.window_update(1, 5), h2.window_update(0, 5), h2.go_away(1, 0), h2.reset(1, 8), HEADERS_BEGUN,
             settings_frame({h2.INITIAL_WINDOW_SIZE: 5}), frame(99, 255, 7, b"???")]  # fmt: skip
TO_SERVER = [
    REQUEST,
    *[one for one in TO_CLIENT if one is not ANSWER],
    frame(h2.HEADERS, h2.END_HEADERS, 3, REQUEST[9:]),
]


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 1 << 32), client_side=st.booleans())
def test_no_bytes_do_more_than_end_it(seed: int, client_side: bool) -> None:
    chance = random.Random(seed)
    frames = [chance.choice(TO_CLIENT if client_side else TO_SERVER) for _ in range(chance.randrange(1, 12))]
    sent = bytearray(b"".join([b"" if client_side else h2.PREFACE, SETTINGS, *frames]))
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(sent))
        sent[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    ours = client()[0] if client_side else server()[0]
    for stream in ours.streams.values():
        stream.send(bytes(1000))
    before = sum(map(len, ours.out))
    rest = bytes(sent)
    try:
        while rest:
            size = chance.choice([1, 7, 50, 5000])
            ours.feed(rest[:size])
            rest = rest[size:]
    except ConnectionFault:
        pass
    assert len(ours.streams) <= 2
    assert sum(map(len, ours.out)) - before <= 2 * len(sent) + 1100
