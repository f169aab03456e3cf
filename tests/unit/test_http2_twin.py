"""Our HTTP/2 framing against the `h2` library, in memory: either side, any split of the bytes, any windows."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import hpack.huffman_constants
import hpack.huffman_table
import pytest
from hpack.huffman import HuffmanEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.wire import grpc_status, http2_huffman
from headrace.wire.http2_connection import Http2Connection
from headrace.wire.http2_frames import message_prefix
from headrace.wire.http2_headers import HeaderError, HeaderReader, write_headers

METHOD = "/a.B/C"
NAMES = st.sampled_from([b":path", b"te", b"x-a", b"x-b", b"content-type"]) | st.binary(max_size=8)
HEADERS = st.lists(st.tuples(NAMES, st.sampled_from([b"/", b"trailers", b""]) | st.binary(max_size=300)), max_size=8)
MESSAGES = st.lists(st.integers(0, 20_000) | st.integers(0, 40), max_size=6)


@dataclass
class Owner:
    """Takes everything; `behind` is of no use here."""

    messages: list[bytes] = field(default_factory=list)
    blocks: list[Any] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)
    behind: bool = False

    def headers_received(self, headers: Any, ends: bool) -> None:
        self.blocks.append((headers, ends))

    def message_received(self, message: bytes) -> None:
        self.messages.append(message)

    def end_received(self) -> None:
        self.told.append("end")

    def message_refused(self, reason: str, *, too_large: bool) -> None:
        self.told.append(reason)

    def reset_received(self, code: int) -> None:
        self.told.append(code)


class Twin:
    """The h2 library as the peer: sends what is queued as far as the windows go, in chunks of any size, padded."""

    def __init__(self, chance: random.Random, *, client: bool, window: int) -> None:
        config = h2.config.H2Configuration(client_side=client, header_encoding=None)
        self.h2 = h2.connection.H2Connection(config=config)
        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.chance = chance
        self.queue: deque[bytes] = deque()
        self.received = bytearray()
        self.events: list[Any] = []
        self.unacknowledged = 0
        self.stream = 1

    def send(self, data: bytes) -> None:
        if data:
            self.queue.append(data)

    def feed(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived):
                self.received += event.data
                self.unacknowledged += event.flow_controlled_length or 0

    def move(self) -> bytes:
        """Does something; answers the bytes that come of it."""
        if self.unacknowledged and self.chance.random() < 0.5:
            self.h2.acknowledge_received_data(self.unacknowledged, self.stream)
            self.unacknowledged = 0
        if self.chance.random() < 0.1:
            self.h2.ping(b"12345678")
        if self.chance.random() < 0.05:
            window = self.chance.choice([300, 65_535, 1_000_000])
            self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        while self.queue and self.chance.random() < 0.8:
            pad = self.chance.choice([None, None, 0, 7])
            room = min(self.h2.local_flow_control_window(self.stream), self.h2.max_outbound_frame_size) - 1 - (pad or 0)
            size = min(len(self.queue[0]), room, self.chance.choice([1, 9, 1000, 1 << 20, 1 << 20]))
            if size <= 0:
                break
            data = self.queue.popleft()
            self.h2.send_data(self.stream, data[:size], pad_length=pad)
            if data[size:]:
                self.queue.appendleft(data[size:])
        return bytes(self.h2.data_to_send())

    @property
    def idle(self) -> bool:
        return not self.queue and not self.unacknowledged


def in_pieces(chance: random.Random, data: bytes, feed: Callable[[bytes], None]) -> None:
    while data:
        size = chance.choice([1, 3, 8, 100, 20_000, 1 << 20])
        feed(data[:size])
        data = data[size:]


def talk(chance: random.Random, ours: Http2Connection, twin: Twin, done: Callable[[], bool]) -> None:
    """Carries bytes until both are done; a dead-lock is an error."""
    for _ in range(3_000):
        in_pieces(chance, twin.move(), ours.feed)
        out = b"".join(ours.out)
        ours.out.clear()
        in_pieces(chance, out, twin.feed)
        if done():
            return
    raise AssertionError("no end in sight")


def framed(messages: list[bytes]) -> bytes:
    return b"".join(message_prefix(len(message)) + message for message in messages)


def bodies(sizes: list[int]) -> list[bytes]:
    return [bytes([number % 251]) * size for number, size in enumerate(sizes)]


@settings(max_examples=40, deadline=None)
@given(sent=MESSAGES, answered=MESSAGES, seed=st.integers(0, 1 << 32), window=st.sampled_from([300, 65_535, 1 << 20]))
def test_our_client_and_another_server(sent: list[int], answered: list[int], seed: int, window: int) -> None:
    chance = random.Random(seed)
    owner, ours, twin = Owner(), Http2Connection(max_message=1 << 20), Twin(chance, client=False, window=window)
    stream = ours.open(owner, grpc_status.request_headers(METHOD))
    for message in bodies(sent):
        stream.send(message)
    stream.end()
    talk(chance, ours, twin, lambda: any(isinstance(event, h2.events.StreamEnded) for event in twin.events))
    asked = next(event for event in twin.events if isinstance(event, h2.events.RequestReceived))
    assert dict(asked.headers)[b":path"] == METHOD.encode()
    twin.h2.send_headers(1, grpc_status.answer_headers())
    twin.send(framed(bodies(answered)))
    talk(chance, ours, twin, lambda: twin.idle and len(owner.messages) == len(answered))
    twin.h2.send_headers(1, grpc_status.trailers(13, "100 % é\n"), end_stream=True)
    talk(chance, ours, twin, lambda: len(owner.blocks) == 2)
    assert bytes(twin.received) == framed(bodies(sent))
    assert owner.messages == bodies(answered)
    assert grpc_status.ending_of(owner.blocks[1][0]) == ("INTERNAL", "100 % é\n")
    assert not ours.streams


@settings(max_examples=40, deadline=None)
@given(sent=MESSAGES, answered=MESSAGES, seed=st.integers(0, 1 << 32), window=st.sampled_from([300, 65_535, 1 << 20]))
def test_our_server_and_another_client(sent: list[int], answered: list[int], seed: int, window: int) -> None:
    chance = random.Random(seed)
    owner, twin = Owner(), Twin(chance, client=True, window=window)
    ours = Http2Connection(max_message=1 << 20, accept=lambda stream: owner)
    long = [(b"x-%d" % number, b"y" * 3000) for number in range(chance.choice([0, 8]))]  # more than a frame holds
    twin.h2.send_headers(1, [*grpc_status.request_headers(METHOD), *long])
    twin.send(framed(bodies(sent)))
    talk(chance, ours, twin, lambda: twin.idle and len(owner.messages) == len(sent) and bool(owner.blocks))
    twin.h2.end_stream(1)
    stream = ours.streams[1]
    stream.send_headers(grpc_status.answer_headers())
    for message in bodies(answered):
        stream.send(message)
    stream.send_headers(grpc_status.trailers(0), end=True)
    talk(chance, ours, twin, lambda: any(isinstance(event, h2.events.StreamEnded) for event in twin.events))
    assert owner.messages == bodies(sent)
    assert owner.told == ["end"]
    assert dict(owner.blocks[0][0])[b":path"] == METHOD.encode()
    assert len(owner.blocks[0][0]) == 7 + len(long)
    assert bytes(twin.received) == framed(bodies(answered))
    ended = next(event for event in twin.events if isinstance(event, h2.events.TrailersReceived))
    assert dict(ended.headers) == {b"grpc-status": b"0"}
    assert not ours.streams


@settings(max_examples=200, deadline=None)
@given(blocks=st.lists(st.tuples(HEADERS, st.booleans(), st.sampled_from([None, 0, 100, 4096])), max_size=6))
def test_header_blocks_of_another_writer(blocks: list[Any]) -> None:
    writer, reader = hpack.Encoder(), HeaderReader(1 << 20)
    for fields, huffman, table in blocks:
        if table is not None:
            writer.header_table_size = table
        assert reader.read(writer.encode(fields, huffman=huffman)) == fields


@given(fields=HEADERS, without_table=st.booleans())
def test_our_header_blocks_for_another_reader(fields: Any, without_table: bool) -> None:
    reader = hpack.Decoder()
    assert [
        tuple(field) for field in reader.decode(write_headers(fields, without_table=without_table), raw=True)
    ] == fields


@settings(max_examples=500, deadline=None)
@given(blocks=st.lists(st.binary(max_size=40), max_size=4))
def test_any_bytes_are_the_same_headers_to_both_or_to_none(blocks: list[bytes]) -> None:
    ours, theirs = HeaderReader(1 << 20), hpack.Decoder()
    for block in blocks:
        try:
            expected: Any = [tuple(field) for field in theirs.decode(block, raw=True)]
        except (hpack.HPACKError, IndexError):
            expected = None
        try:
            found: Any = ours.read(block)
        except HeaderError:
            found = None
        assert found == expected
        if found is None:
            return


@given(text=st.binary(max_size=60))
def test_huffman_codes(text: bytes) -> None:
    constants = hpack.huffman_constants
    assert (
        http2_huffman.decode(HuffmanEncoder(constants.REQUEST_CODES, constants.REQUEST_CODES_LENGTH).encode(text))
        == text
    )
    try:
        expected: bytes | None = hpack.huffman_table.decode_huffman(text)
    except hpack.HPACKDecodingError:
        expected = None
    if expected is None:
        with pytest.raises(http2_huffman.HuffmanError):
            http2_huffman.decode(text)
    else:
        assert http2_huffman.decode(text) == expected
