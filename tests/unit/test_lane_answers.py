"""Answers to rows, told by the lot or one by one: the same as the broker's JSON says of each."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import compiled
from headrace.edge.lane_publishes import PublishBook
from headrace.ports import Row, Stored
from headrace.wire import jetstream, jetstream_answers
from headrace.wire.nats_protocol import Frame

PREFIX = b"_INBOX.x."
GOOD = b'{"stream":"S","seq":7}'
FULL = b'{"error":{"code":503,"err_code":10077,"description":"full"},"stream":"S","seq":0}'

payloads = st.one_of(
    st.builds(lambda stream, number: b'{"stream":"%b","seq":%d}' % (stream, number), st.sampled_from([b"S", b"T", b""]),
              st.integers(0, 2**64)),
    st.sampled_from([GOOD, FULL, b"", b"{}", b'{"stream":"S","seq":7,"duplicate":true}', b'{"stream":"S","seq":07}',
                     b'{"stream":"S","domain":"d","seq":7}', b'{"stream":"S","seq":7 }', b'{"stream":"S","seq":-7}',
                     b'{"stream":"S","seq":7}}', b'{"stream":"S","seq":}', b'{"stream":"S","seq":7', b"garbage"]),
    st.binary(max_size=30),
)  # fmt: skip
headers = st.sampled_from([None, None, None, b"NATS/1.0 503\r\n\r\n", b"NATS/1.0\r\nA: b\r\n\r\n"])


async def _told(answers: list[tuple[bytes, bytes | None]], lots: list[int]) -> dict[int, str]:
    link: Any = SimpleNamespace(up=True, max_payload=1 << 20, write_all=lambda parts: None)
    book = PublishBook(link, PREFIX, max_count=1000, max_bytes=1 << 20)
    told: dict[int, str] = {}

    def one(about: int, answer: Any) -> None:
        assert about not in told
        told[about] = "stored" if isinstance(answer, Stored) and not answer.duplicate else repr(answer)

    def many(lot: list[int]) -> None:
        for about in lot:
            one(about, Stored(1, False))

    rows: list[Row] = [(b"payload", f"{number}", "t", number) for number in range(len(answers))]
    assert book.add_rows(b"s.a", rows, 60.0, one, many)
    frames: list[Frame] = [
        (1, PREFIX + b"%d" % number, b"", payload, block) for number, (payload, block) in enumerate(answers, 1)
    ]
    foreign: Frame = (1, PREFIX + b"a7", b"", b"", None)
    at = 0
    for size in [*lots, len(frames)]:
        assert book.answers([*frames[at : at + size], foreign]) == [foreign]
        at += size
    assert book.answers(frames) == frames  # too late: each is told once
    assert (len(book), book.bytes_waiting) == (0, 0)
    book.end_all("over")
    return told


def _said(payload: bytes, block: bytes | None) -> bool:
    """Whether it says: stored, and not known before."""
    if block is not None and not payload:
        return False
    try:
        ack = jetstream_answers.parse_pub_ack(payload)
    except jetstream.MalformedAnswer:
        return False
    return ack.error is None and not ack.duplicate


@pytest.mark.skipif(compiled.PROCESS.decide(), reason="compiled modules take no fake for the connection")
@given(st.lists(st.tuples(payloads, headers), min_size=1, max_size=20), st.lists(st.integers(0, 6), max_size=5))
def test_each_row_is_told_once_what_its_answer_says(answers: list[tuple[bytes, bytes | None]], lots: list[int]) -> None:
    told = asyncio.run(_told(answers, lots))
    assert [told[number] == "stored" for number in range(len(answers))] == [_said(*answer) for answer in answers]
