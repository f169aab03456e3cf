"""A response's head leaves with its body, whatever comes between; nothing is held back or lost."""

from __future__ import annotations

import asyncio

import pytest

from services.gateway.whole_answers import WholeAnswers

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.ended = ""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ([HEAD, b"ok"], [HEAD + b"ok"]),
        ([HEAD, b""], [HEAD]),
        ([HEAD, b"o", b"k"], [HEAD + b"o", b"k"]),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", HEAD, b"ok"], [b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + b"ok"]),
        ([HEAD, b"ok", HEAD, b"ok"], [HEAD + b"ok"] * 2),
    ],
)
def test_a_head_waits_for_what_follows(given: list[bytes], written: list[bytes]) -> None:
    wire = Wire()
    answers = WholeAnswers(wire)
    for data in given:
        answers.write(data)
    assert wire.writes == written


def test_a_head_alone_leaves_at_the_end() -> None:
    for end in ("flush", "close"):
        wire = Wire()
        answers = WholeAnswers(wire)
        answers.write(HEAD)
        getattr(answers, end)()
        assert wire.writes == [HEAD]
    answers.write(HEAD)
    answers.abort()
    assert (wire.writes, wire.ended) == ([HEAD], "aborted")
