"""A lean HTTP/1.1 caller over keep-alive connections, for measuring from outside.

Blocking sockets in a few threads: the clock is read right before the first byte is written and right after the
last byte was read, so that neither parsing nor another connection's work is in the figure. How long the answer
waited at the socket for its thread to get a processor is in the figure, and measured apart by the kernel's stamp.
Loopback, plain HTTP, answers with Content-Length only.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headrace.edge.arrival_stamp import ANCILLARY_BYTES, arrived_at_unix_ns, stamp_arrivals

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request. Requests of the same `group` (not empty) go over one connection, one after the other."""

    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"
    group: str = ""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Status 0 means that no answer came; `problem` says why. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent_ns: int
    received_ns: int
    unread_ns: int = 0
    """How long the whole answer had been at the caller's socket before the caller came to read its end; part of
    the latency. 0 where the kernel does not stamp."""
    problem: str = ""

    @property
    def latency_us(self) -> float:
        return (self.received_ns - self.sent_ns) / 1000


class HttpConnection:
    """One keep-alive connection; opened when needed, opened again after the other side closed it."""

    def __init__(self, host: str, port: int, *, timeout_s: float) -> None:
        self._host = host
        self._port = port
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def call(self, request: HttpRequest) -> HttpAnswer:
        """Sends one request and reads its answer; never raises for what the network does."""
        wire = self._encode(request)
        sent_ns = time.perf_counter_ns()
        try:
            connection = self._connect()
            sent_ns = time.perf_counter_ns()
            connection.sendall(wire)
            head, body, received_ns, unread_ns = _read_answer(connection)
        except (OSError, ValueError) as error:
            self.close()
            return HttpAnswer(0, {}, b"", sent_ns, time.perf_counter_ns(), problem=repr(error))
        status, headers = _parse_head(head)
        if headers.get("connection", "").lower() == "close":
            self.close()
        return HttpAnswer(status, headers, body, sent_ns, received_ns, unread_ns)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.create_connection((self._host, self._port), timeout=self._timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stamp_arrivals(self._socket)
        return self._socket

    def _encode(self, request: HttpRequest) -> bytes:
        lines = [f"{request.method} {request.path} HTTP/1.1", f"host: {self._host}:{self._port}"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        lines.append(f"content-length: {len(request.body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + request.body


def call_all(
    requests: Sequence[HttpRequest],
    *,
    host: str,
    port: int,
    connections: int = 4,
    rate: float = 0.0,
    timeout_s: float = 30.0,
    stopping: threading.Event | None = None,
) -> list[HttpAnswer]:
    """Sends all requests over a fixed number of connections, each one request at a time, in their order.

    `rate` is requests a second in all, 0 for as fast as they are answered; one whose connection is still busy
    when it is due goes right after. Answers stand in the order of the requests. Ends at the latest after
    `timeout_s` per request in sequence, and soon after `stopping` is set: what was not sent then has status 0.
    """
    stop = stopping or threading.Event()
    lanes = _spread(requests, connections)
    answers: dict[int, HttpAnswer] = {}
    began = time.perf_counter()

    def work(lane: list[int]) -> None:
        connection = HttpConnection(host, port, timeout_s=timeout_s)
        try:
            for index in lane:
                early_s = began + index / rate - time.perf_counter() if rate else 0.0
                if stop.wait(early_s) if early_s > 0 else stop.is_set():
                    return
                answers[index] = connection.call(requests[index])
        finally:
            connection.close()

    threads = [
        threading.Thread(target=work, args=(lane,), name=f"caller-{number}", daemon=True)
        for number, lane in enumerate(lanes)
    ]
    for thread in threads:
        thread.start()
    for thread, lane in zip(threads, lanes, strict=True):
        thread.join(timeout_s * max(1, len(lane)) + (len(requests) / rate if rate else 0.0))
    late = HttpAnswer(0, {}, b"", 0, 0, problem="not sent, or not answered within the limit")
    return [answers.get(index, late) for index in range(len(requests))]


def _spread(requests: Sequence[HttpRequest], connections: int) -> list[list[int]]:
    """Round robin, except that a group stays on the connection of its first request."""
    lanes: list[list[int]] = [[] for _ in range(connections)]
    of_group: dict[str, int] = {}
    for index, request in enumerate(requests):
        lane = index % connections
        if request.group:
            lane = of_group.setdefault(request.group, lane)
        lanes[lane].append(index)
    return lanes


def _read_answer(connection: socket.socket) -> tuple[bytes, bytes, int, int]:
    """Head, body, when the last byte was read, and how long it had lain there (nanoseconds)."""
    received, ancillary, _, _ = connection.recvmsg(MAX_HEAD_BYTES, ANCILLARY_BYTES)
    while (end := received.find(b"\r\n\r\n")) < 0:
        more, ancillary, _, _ = connection.recvmsg(MAX_HEAD_BYTES, ANCILLARY_BYTES) if received else (b"", [], 0, None)
        if not more:
            raise ConnectionError("the connection was closed before an answer")
        received += more
        if len(received) > MAX_HEAD_BYTES:
            raise ValueError("the answer's head is too long")
    length = _content_length(received[:end])
    chunks = [received[end + 4 :]]
    missing = length - len(chunks[0])
    while missing > 0:
        chunk, ancillary, _, _ = connection.recvmsg(min(missing, 1 << 20), ANCILLARY_BYTES)
        if not chunk:
            raise ConnectionError("the connection was closed within an answer")
        chunks.append(chunk)
        missing -= len(chunk)
    received_ns, read_at_unix_ns = time.perf_counter_ns(), time.time_ns()
    arrived_ns = arrived_at_unix_ns(ancillary)
    unread_ns = max(0, read_at_unix_ns - arrived_ns) if arrived_ns else 0
    return received[:end], b"".join(chunks)[:length], received_ns, unread_ns


def _content_length(head: bytes) -> int:
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if at < 0:
        status = lower.split(b" ", 2)[1:2]
        if status in ([b"204"], [b"304"]):
            return 0
        raise ValueError("the answer has no Content-Length")
    length = int(lower[at + 17 :].split(b"\r\n", 1)[0])
    if not 0 <= length <= MAX_BODY_BYTES:
        raise ValueError(f"the answer's Content-Length is {length}")
    return length


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(first.split(" ", 2)[1]), headers
