"""Stimuli straight to a flow's ingress, paced, as gateways publish them; as fast as is taken: benchmarks/blast.py."""

from __future__ import annotations

import asyncio
import json
import time
import uuid

from benchmarks.blast import Body
from benchmarks.raw_nats import RawNats
from benchmarks.sampling import open_loop
from headrace.api.message.v1 import message_pb2
from headrace.edge.group_commit import Answer, GroupCommit
from headrace.edge.jetstream_lane import NatsLane
from headrace.edge.nats_link import NatsLink
from headrace.model import message_ids, subjects
from headrace.ports import Stored

FULL_RETRY_S = 0.003
ANSWER_LIMIT_S = 30.0


class IngressLoad:
    """One connection; counts what the broker acknowledged and what it refused because an edge was full.

    `ask_one_in` n: every n-th stimulus asks for a reply, and `answered_ns` gets how long each took from the moment it
    was due (so what waits behind a stall counts); 0: none does."""

    def __init__(self, flow: str, trigger: str, body: Body, content_type: str, ask_one_in: int = 0) -> None:
        self._flow, self._trigger = flow, trigger
        self._subject = subjects.ingress_subject("default", flow, trigger)
        self._body = body
        self._same: bytes | None = None
        self._content_type = content_type
        self._run = uuid.uuid4().hex
        self._index = 0
        self._unanswered: dict[int, bytes] = {}
        self._client: RawNats
        self._group: GroupCommit | None = None
        self._ask_one_in = ask_one_in
        self._due_ns: dict[str, int] = {}
        self.answered_ns: list[int] = []
        self.acknowledged = 0
        self.refused = 0

    async def connect(self, host: str, port: int, *, together: bool = False) -> None:
        """`together`: stored in batches while many wait, as gateways do where the broker syncs every write."""
        if together:
            self._lane = NatsLane(await NatsLink.connect(f"nats://{host}:{port}", "bench load"))
            await self._lane.start()
            self._group = GroupCommit(self._lane)
        self._client = await RawNats.connect(host, port, self._on_answer)
        self._inbox = f"bench.{self._run}"
        self._client.subscribe(self._inbox + ".*", 1)

    def _on_answer(self, subject: str, reply: str, payload: bytes) -> None:
        last = subject.rpartition(".")[2]
        if last == "reply":
            due_ns = self._due_ns.pop(message_pb2.Reply.FromString(payload).execution_id, 0)
            if due_ns:
                self.answered_ns.append(time.time_ns() - due_ns)
            return
        self._settle(int(last), stored=bool(payload) and b'"error"' not in payload)

    def _told(self, index: int, answer: Answer) -> None:
        self._settle(index, stored=isinstance(answer, Stored))

    def _settle(self, index: int, *, stored: bool) -> None:
        if not stored:
            self.refused += 1
            asyncio.get_running_loop().call_later(FULL_RETRY_S, self._write, index)
            return
        if self._unanswered.pop(index, None) is not None:
            self.acknowledged += 1

    def _write(self, index: int, due_ns: int = 0) -> None:
        stimulus = message_ids.stimulus_id(self._flow, "inject", f"{self._run}{index}")
        identity = message_ids.first_message_id(stimulus, self._trigger)
        head = message_pb2.Envelope(
            id=identity,
            execution_id=message_ids.execution_id(stimulus),
            sent_at_unix_ns=time.time_ns(),
        )
        if self._ask_one_in and index % self._ask_one_in == 0:
            head.reply_to.subject = f"{self._inbox}.reply"
            self._due_ns.setdefault(head.execution_id, due_ns or time.time_ns())
        payload = head.SerializeToString() + self._rest(index)
        if self._group is not None:
            self._group.publish_told(self._subject, payload, self._told, index, message_id=identity)
        else:
            self._client.publish(self._subject, payload, f"{self._inbox}.{index}", identity)

    def _rest(self, index: int) -> bytes:
        """Body and content type: encoded once where they are the same for all."""
        if self._same is None or callable(self._body):
            body = self._body(index) if callable(self._body) else self._body
            self._same = message_pb2.Envelope(body=body, content_type=self._content_type).SerializeToString()
        return self._same

    def fire(self, due_ns: int = 0) -> None:
        """Publishes the next stimulus now; `due_ns` (Unix time): when it should have been."""
        self._index += 1
        self._unanswered[self._index] = b""
        self._write(self._index, due_ns)

    async def paced(self, rate: float, seconds: float) -> int:
        return await open_loop(rate, seconds, self.fire)

    async def settle(self) -> None:
        """Waits until every stimulus is acknowledged."""
        async with asyncio.timeout(ANSWER_LIMIT_S):
            while self._unanswered:
                await asyncio.sleep(0.01)

    async def all_answered(self, limit_s: float = ANSWER_LIMIT_S) -> None:
        """Waits until every stimulus that asked has its reply."""
        async with asyncio.timeout(limit_s):
            while self._due_ns:
                await asyncio.sleep(0.01)

    def close(self) -> None:
        self._client.close()
        if self._group is not None:
            self._closing = asyncio.ensure_future(self._lane.close(timeout_s=0.1))


def typed_body() -> bytes:
    """About 256 bytes of JSON for the typed component."""
    reading = {
        "id": 7,
        "hops": 0,
        "sensor": "headrace-bench-0001",
        "values": [1.25, 2.5, 3.75, 5.0, 6.25, 7.5, 8.75, 10.0],
        "note": "n" * 120,
    }
    return json.dumps(reading).encode()
