"""Pure decisions of the gateway: headers both ways, paths, trace context, room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain.admission import SHARE, Admission
from services.gateway.domain.hook_path import parse_hook_path
from services.gateway.domain.refusals import Refusal
from services.gateway.domain.reply_headers import check_status, reply_headers
from services.gateway.domain.request_headers import MAX_PASSED_BYTES, read_headers

NAMES = st.sampled_from(
    [b"accept", b"x-a", b"cookie", b"authorization", b"te", b"headrace-version", b"host", b"traceparent"]
)
VALUES = st.binary(max_size=60)
TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@given(st.lists(st.tuples(NAMES, VALUES), max_size=20))
def test_only_what_may_travel_travels(raw: list[tuple[bytes, bytes]]) -> None:
    headers = read_headers(raw)
    assert set(headers.passed) <= {"accept", "x-a"}
    for name in (b"accept", b"x-a"):
        given_values = [value.decode("latin-1") for key, value in raw if key == name]
        assert headers.passed.get(name.decode(), "") == ", ".join(given_values)


def test_headers_that_connection_names_stay_here() -> None:
    headers = read_headers([(b"connection", b"X-One, close"), (b"x-one", b"1"), (b"x-two", b"2")])
    assert headers.passed == {"x-two": "2"}


def test_what_travels_is_bounded() -> None:
    fits = [(b"x", b"v" * (MAX_PASSED_BYTES - 1))]
    assert len(read_headers(fits).passed["x"]) == MAX_PASSED_BYTES - 1
    with pytest.raises(Refusal) as caught:
        read_headers([*fits, (b"y", b"")])
    assert caught.value.status == 431


@pytest.mark.parametrize(
    ("content_type", "json"),
    [
        (b"application/json", True),
        (b"Application/JSON; charset=utf-8", True),
        (b"application/problem+json", True),
        (b"text/json", False),
        (b"application/jsonl", False),
        (b"", False),
    ],
)
def test_which_content_types_say_json(content_type: bytes, json: bool) -> None:
    assert read_headers([(b"content-type", content_type)]).says_json is json


@pytest.mark.parametrize(
    ("path", "parsed"),
    [
        ("/hook/orders", ("orders", "")),
        ("/hook/orders/", ("orders", "/")),
        ("/hook/orders/a%20b/c", ("orders", "/a%20b/c")),
        ("/hook/a-1//x", ("a-1", "//x")),
    ],
)
def test_hook_paths(path: str, parsed: tuple[str, str]) -> None:
    assert parse_hook_path(path) == parsed


@pytest.mark.parametrize("path", ["/hook", "/hook/", "/hook/_x", "/hook/A", "/hook/1", "/hook/a.b", "/hook/a b", "/x"])
def test_other_paths_are_not_found(path: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_hook_path(path)
    assert caught.value.status == 404


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=40), max_size=5), st.text(max_size=30))
def test_no_reply_can_split_a_response(headers: dict[str, str], content_type: str) -> None:
    try:
        raw = reply_headers(headers, content_type, step="s", execution="e")
    except Refusal:
        return
    for name, value in raw:
        assert name == name.lower()
        assert not set(b"\r\n\x00") & set(name + value)
        assert name
        assert not set(b" :") & set(name)


def test_a_reply_cannot_speak_for_the_gateway() -> None:
    headers = {"Headrace-Execution": "x", "content-length": "5", "Connection": "close", "X-Kept": "Jürgen ☃"}
    raw = reply_headers(headers, "text/plain", step="s", execution="e")
    assert raw == [(b"content-type", b"text/plain"), (b"x-kept", "Jürgen ☃".encode())]


@pytest.mark.parametrize("status", [0, 100, 199, 600])
def test_statuses_that_no_reply_may_have(status: int) -> None:
    with pytest.raises(Refusal):
        check_status(status, "s", "e")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60), st.booleans()), max_size=60))
def test_room_is_never_exceeded_and_always_given_back(moves: list[tuple[str, int, bool]]) -> None:
    room = Admission(max_requests=5, max_bytes=100)
    inside: list[tuple[str, int]] = []
    for flow, size, comes in moves:
        if not comes and inside:
            room.leave(*inside.pop())
            continue
        try:
            room.enter(flow)
        except Refusal:
            mine = sum(name == flow for name, _ in inside)
            assert len(inside) == 5 or mine >= SHARE * (5 - len(inside))
            continue
        try:
            room.take(flow, size)
            inside.append((flow, size))
        except Refusal:
            total = sum(size for _, size in inside)
            mine = sum(size for name, size in inside if name == flow)
            assert total + size > 100 or mine + size > SHARE * (100 - total)
            room.leave(flow, 0)
    assert (room.requests, room.bytes) == (len(inside), sum(size for _, size in inside))
    assert set(room.flows) == {flow for flow, _ in inside}


@given(st.integers(1, 12), st.integers(50, 2_000))
def test_flows_that_take_all_they_get_leave_room_for_a_new_one(hogs: int, limit: int) -> None:
    room = Admission(max_requests=limit)
    held = [0] * hogs
    while True:
        before = sum(held)
        for hog in range(hogs):
            try:
                room.enter(f"hog-{hog}")
                held[hog] += 1
            except Refusal:
                pass
        if sum(held) == before:
            break
    fair = SHARE * limit / (1 + SHARE * hogs)
    assert all(fair - SHARE - 1 <= count <= fair + SHARE + 1 for count in held)
    for _ in range(max(1, int(limit / (1 + SHARE * hogs) / 2))):
        room.enter("new")
