"""A response's head leaves with its body, whatever comes between; nothing is held back or lost."""

from __future__ import annotations

import asyncio
import logging

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from services.gateway.whole_answers import WholeAnswers, answer_at_once, whole_answers

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


def _cycle(wire: Wire, done: list[bool], *, keep_alive: bool = True) -> RequestResponseCycle:
    transport = whole_answers(wire)
    return RequestResponseCycle(
        scope={"method": "POST"},  # type: ignore[typeddict-item]
        transport=transport,
        flow=FlowControl(transport),
        logger=logging.getLogger("test"),
        access_logger=logging.getLogger("test"),
        access_log=False,
        default_headers=[(b"date", b"now")],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: done.append(True),
    )


@pytest.mark.parametrize(("status", "body"), [(200, b"ok"), (200, b""), (201, b"x" * 100_000), (599, b"{}")])
async def test_an_answer_at_once_is_what_uvicorn_writes(status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"x-name", b"v\xc3\xa4lue"), (b"content-length", b"%d" % len(body))]
    slow, fast, done = Wire(), Wire(), list[bool]()
    cycle = _cycle(slow, done)
    await cycle.send({"type": "http.response.start", "status": status, "headers": headers})
    await cycle.send({"type": "http.response.body", "body": body})
    WholeAnswers.flush(cycle.transport)  # type: ignore[arg-type]
    quick = _cycle(fast, done)
    assert answer_at_once(quick, status, headers, body)
    assert fast.writes == [b"".join(slow.writes)]
    assert done == [True, True]
    assert quick.response_complete
    assert quick.message_event.is_set()


async def test_what_is_more_than_writing_is_left_to_uvicorn() -> None:
    wire, done = Wire(), list[bool]()
    gone, paused = _cycle(wire, done), _cycle(wire, done)
    gone.disconnected = True
    paused.flow.pause_writing()
    for cycle in (gone, paused, _cycle(wire, done, keep_alive=False)):
        assert not answer_at_once(cycle, 200, [(b"content-length", b"0")], b"")
    assert (wire.writes, done) == ([], [])
