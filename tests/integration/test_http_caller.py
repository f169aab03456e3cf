"""The lean HTTP caller against a real server that behaves and misbehaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from headrace.cli.http_caller import HttpConnection, HttpRequest, call_all


class Echo(BaseHTTPRequestHandler):
    """Echoes the body; `/hang-up` closes without an answer, `/bye` answers and closes."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[int, str]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append((self.client_address[1], self.path))  # type: ignore[attr-defined]
        if self.path == "/hang-up":
            self.close_connection = True
            return
        self.send_response(201)
        self.send_header("X-Key", self.headers.get("idempotency-key", ""))
        self.send_header("Content-Length", str(len(body)))
        if self.path == "/bye":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    running.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join(5)


def test_answers_stand_in_order_over_a_fixed_number_of_connections(server: ThreadingHTTPServer) -> None:
    requests = [HttpRequest(f"/{number}", b"x" * number) for number in range(60)]
    answers = call_all(requests, host="127.0.0.1", port=server.server_port, connections=3, timeout_s=5)
    assert [len(answer.body) for answer in answers] == list(range(60))
    assert {answer.status for answer in answers} == {201}
    assert all(answer.received_ns > answer.sent_ns for answer in answers)
    assert len({peer for peer, _ in server.seen}) == 3  # type: ignore[attr-defined]


def test_a_group_goes_over_one_connection_in_its_order(server: ThreadingHTTPServer) -> None:
    requests = [HttpRequest(f"/{number}", group="same" if number % 3 == 0 else "") for number in range(12)]
    call_all(requests, host="127.0.0.1", port=server.server_port, connections=4, timeout_s=5)
    grouped = [(peer, path) for peer, path in server.seen if int(path[1:]) % 3 == 0]  # type: ignore[attr-defined]
    assert len({peer for peer, _ in grouped}) == 1
    assert [path for _, path in grouped] == ["/0", "/3", "/6", "/9"]


def test_a_large_body_arrives_whole(server: ThreadingHTTPServer) -> None:
    body = bytes(range(256)) * 2000
    (answer,) = call_all([HttpRequest("/", body)], host="127.0.0.1", port=server.server_port, timeout_s=5)
    assert answer.body == body


def test_a_closed_connection_is_a_problem_once_and_opened_again(server: ThreadingHTTPServer) -> None:
    connection = HttpConnection("127.0.0.1", server.server_port, timeout_s=5)
    hung_up = connection.call(HttpRequest("/hang-up"))
    assert hung_up.status == 0
    assert "closed before an answer" in hung_up.problem
    assert connection.call(HttpRequest("/bye", b"a")).body == b"a"
    answer = connection.call(HttpRequest("/", b"b", {"idempotency-key": "k"}))
    assert (answer.body, answer.headers["x-key"]) == (b"b", "k")
    connection.close()


def test_requests_are_paced_and_end_when_asked_to(server: ThreadingHTTPServer) -> None:
    requests = [HttpRequest("/") for _ in range(20)]
    began = time.monotonic()
    call_all(requests, host="127.0.0.1", port=server.server_port, rate=100, timeout_s=5)
    assert 0.19 <= time.monotonic() - began < 2
    stopping = threading.Event()
    threading.Timer(0.1, stopping.set).start()
    answers = call_all(requests, host="127.0.0.1", port=server.server_port, rate=1, timeout_s=5, stopping=stopping)
    assert answers[0].status == 201
    assert {answer.status for answer in answers[1:]} == {0}
    assert time.monotonic() - began < 4


def test_nobody_listens() -> None:
    (answer,) = call_all([HttpRequest("/")], host="127.0.0.1", port=1, timeout_s=1)
    assert answer.status == 0
    assert answer.problem
