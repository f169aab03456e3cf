"""Orders that keep flowing while something is done to the mesh: paced, on keep-alive connections, each kept.

Threads of their own, so that what the demo does meanwhile does not hold them up.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.cli.http_caller import HttpAnswer, HttpConnection, HttpRequest

CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class OrderCall:
    """One order and what its caller was told."""

    order_id: str
    answer: HttpAnswer
    late_us: float = 0.0
    """How long after it was due it was sent: no connection was free, or no processor."""


class SteadyOrders:
    """`start`, look at `calls` (they stand in the order of their answers), `stop`.

    An order goes when it is due, or as soon as its connection is free. Order ids are `S-00001`, ...
    """

    def __init__(
        self,
        bodies: Sequence[dict[str, Any]],
        *,
        path: str,
        host: str,
        port: int,
        rate: float,
        timeout_s: float,
        connections: int = CONNECTIONS,
    ) -> None:
        self._bodies = bodies
        self._path, self._host, self._port = path, host, port
        self._rate = rate
        self._timeout_s = timeout_s
        self._connections = connections
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._began = 0.0
        self.calls: list[OrderCall] = []

    def start(self) -> None:
        self._began = time.perf_counter()
        for lane in range(self._connections):
            thread = threading.Thread(target=self._work, args=(lane,), name=f"orders-{lane}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> list[OrderCall]:
        """Sends no more and waits for the answers that are due; blocking."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(self._timeout_s + 1.0)
        return self.calls

    def _work(self, lane: int) -> None:
        connection = HttpConnection(self._host, self._port, timeout_s=self._timeout_s)
        number = lane
        try:
            while not self._stopping.is_set():
                due = self._began + number / self._rate
                early_s = due - time.perf_counter()
                if early_s > 0 and self._stopping.wait(early_s):
                    return
                order_id = f"S-{number + 1:05d}"
                body = {**self._bodies[number % len(self._bodies)], "order_id": order_id}
                raw = json.dumps(body, ensure_ascii=False).encode()
                request = HttpRequest(self._path, raw, {"content-type": "application/json"})
                late_us = (time.perf_counter() - due) * 1e6
                self.calls.append(OrderCall(order_id, connection.call(request), late_us))
                number += self._connections
        finally:
            connection.close()
