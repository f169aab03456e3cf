"""Streams and consumers by raw JetStream API requests, over a nats-py connection.

Raw because nats-py's configuration classes change or leave out what is not theirs; servers from 2.12 on refuse
unknown JSON fields, so what is sent here is exactly what is meant. Every request has a limit.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nats.errors

from headrace.document_ports import Requests
from headrace.edge.replication import copies
from headrace.model.errors import Unavailable
from headrace.ports import BatchMessage
from headrace.wire import jetstream

API = "$JS.API"
TIMEOUT_S = 5.0
WAKE_S = 0.1
STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
MESSAGE_NOT_FOUND = 10037
# Of a delete: the first also covers other failures, and says in words that the message is gone already.
DELETE_FAILED = 10057
SEQUENCE_NOT_FOUND = 10043
EDGE_FULL = 10077
# Requests that change nothing.
READS = ("STREAM.INFO.", "STREAM.LIST", "STREAM.MSG.GET.", "CONSUMER.LIST.", "CONSUMER.INFO.", "INFO")
# "For ever" for a paused consumer; resumed explicitly.
PAUSED_UNTIL = "2200-01-01T00:00:00Z"


class JetStreamApiError(Exception):
    """The broker refused an API request; `code` is its err_code."""

    def __init__(self, subject: str, code: int, description: str) -> None:
        super().__init__(f"{subject}: {description} ({code})")
        self.code = code
        self.description = description


class NoResponders(Exception):
    """Nobody listens on the subject: no stream has it."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message as a stream keeps it."""

    subject: str
    sequence: int
    data: bytes
    headers: Mapping[str, str]


class JetStreamAssets:
    """The asset calls that the orchestrator needs; Unavailable when the broker does not answer."""

    def __init__(
        self, connection: Requests, *, timeout_s: float = TIMEOUT_S, guard: Callable[[], None] = lambda: None
    ) -> None:
        """`guard` is called before everything that changes the broker, and raises where that may not be."""
        self._connection = connection
        self._timeout_s = timeout_s
        self._guard = guard

    @property
    def copies(self) -> int:
        """How many servers are to keep a stream (`num_replicas`)."""
        return copies(self._connection)

    async def request(self, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One API call, for example `STREAM.INFO.orders`; JetStreamApiError on an error answer."""
        if not verb.startswith(READS):
            self._guard()
        subject = f"{API}.{verb}"
        payload = json.dumps(body).encode() if body is not None else b""
        try:
            answer = await self._connection.request(subject, payload, timeout=self._timeout_s)
        except (nats.errors.Error, TimeoutError) as error:
            raise Unavailable(
                f"the broker did not answer {verb}: {error!r}",
                reason="BROKER_UNREACHABLE",
                next_step="Try again; check that the NATS server runs",
            ) from error
        data: dict[str, Any] = json.loads(answer.data)
        if "error" in data:
            problem = data["error"]
            if problem.get("err_code") == jetstream.TEMPORARILY_UNAVAILABLE:
                raise Unavailable(
                    f"the broker cannot answer {verb} now, it elects a leader",
                    reason="BROKER_UNREACHABLE",
                    next_step="Try again in a few seconds",
                )
            raise JetStreamApiError(verb, int(problem.get("err_code", 0)), str(problem.get("description", "")))
        return data

    async def stream_info(self, stream: str, subjects_filter: str = "") -> dict[str, Any] | None:
        """Config, state and, with a filter, message counts per subject (`state.subjects`); None if absent."""
        try:
            body = {"subjects_filter": subjects_filter} if subjects_filter else None
            return await self.request(f"STREAM.INFO.{stream}", body)
        except JetStreamApiError as error:
            if error.code == STREAM_NOT_FOUND:
                return None
            raise

    async def account(self) -> dict[str, Any]:
        """What all streams of the account hold together, and how its calls went."""
        return await self.request("INFO")

    async def stream_states(self, subject: str) -> dict[str, dict[str, Any]]:
        """`state` of each stream that takes the subject (which may have wildcards), by name: a request per 256."""
        found: dict[str, dict[str, Any]] = {}
        offset = 0
        while True:
            answer = await self.request("STREAM.LIST", {"subject": subject, "offset": offset})
            page = answer.get("streams") or []
            found.update((str(info["config"]["name"]), info["state"]) for info in page)
            offset += len(page)
            if not page or offset >= int(answer.get("total", 0)):
                return found

    async def oldest_time(self, stream: str, subject_filter: str) -> str:
        """When the first message that matches was stored, RFC 3339; empty when there is none."""
        answer = await self._unless_absent(f"STREAM.MSG.GET.{stream}", {"seq": 1, "next_by_subj": subject_filter})
        return str(answer["message"]["time"]) if answer is not None else ""

    async def ensure_stream(self, config: dict[str, Any]) -> dict[str, Any]:
        """Creates the stream or updates it to this config; answers the config as the broker has it now."""
        name = config["name"]
        try:
            answer = await self.request(f"STREAM.UPDATE.{name}", config)
        except JetStreamApiError as error:
            if error.code != STREAM_NOT_FOUND:
                raise
            answer = await self.request(f"STREAM.CREATE.{name}", config)
        answered: dict[str, Any] = answer["config"]
        return answered

    async def create_stream(self, config: dict[str, Any]) -> None:
        """Creates the stream; with an equal config that exists it is a success."""
        await self.request(f"STREAM.CREATE.{config['name']}", config)

    async def delete_stream(self, stream: str) -> None:
        await self._unless_absent(f"STREAM.DELETE.{stream}", None)

    async def purge(self, stream: str, subject_filter: str = "", *, through: int = 0) -> int:
        """Removes what matches the filter, with `through` only up to that sequence; answers how many messages."""
        body: dict[str, Any] = {"filter": subject_filter} if subject_filter else {}
        if through:
            body["seq"] = through + 1  # the broker's own limit is exclusive
        answer = await self._unless_absent(f"STREAM.PURGE.{stream}", body or None)
        return int(answer.get("purged", 0)) if answer else 0

    async def consumers(self, stream: str) -> list[dict[str, Any]]:
        """Infos of all consumers of a stream; empty when there is no stream."""
        found: list[dict[str, Any]] = []
        while True:
            answer = await self._unless_absent(f"CONSUMER.LIST.{stream}", {"offset": len(found)})
            page = (answer or {}).get("consumers") or []
            found += page
            if answer is None or not page or len(found) >= int(answer.get("total", 0)):
                return found

    async def ensure_consumer(self, stream: str, config: dict[str, Any]) -> None:
        """Creates the durable or updates what may be updated."""
        body = {"stream_name": stream, "config": config, "action": ""}
        await self.request(f"CONSUMER.CREATE.{stream}.{config['durable_name']}", body)

    async def consumer_info(self, stream: str, consumer: str) -> dict[str, Any] | None:
        """Config and state; None if absent."""
        return await self._unless_absent(f"CONSUMER.INFO.{stream}.{consumer}", None)

    async def reset_consumer(self, stream: str, consumer: str, *, to_sequence: int) -> None:
        """All that is stored for it from that stream sequence on is delivered (again), with delivery counts that
        begin anew. Server 2.14 or newer."""
        await self.request(f"CONSUMER.RESET.{stream}.{consumer}", {"seq": to_sequence})

    async def delete_consumer(self, stream: str, consumer: str) -> None:
        await self._unless_absent(f"CONSUMER.DELETE.{stream}.{consumer}", None)

    async def pause_consumer(self, stream: str, consumer: str, *, paused: bool) -> None:
        """Pauses for ever or resumes; what waits is delivered at once."""
        body = {"pause_until": PAUSED_UNTIL} if paused else {}
        await self.request(f"CONSUMER.PAUSE.{stream}.{consumer}", body)
        if not paused:
            await self._wake(stream, consumer)

    async def _wake(self, stream: str, consumer: str) -> None:
        """A resumed consumer sleeps on until a message or a pull comes, or a heartbeat is due (nats-server 2.15):
        this pull wakes it. No message is small enough for it, so it takes none; its answer is not waited for."""
        body = json.dumps({"batch": 1, "expires": int(WAKE_S * 1e9), "max_bytes": 1}).encode()
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await self._connection.request(f"{API}.CONSUMER.MSG.NEXT.{stream}.{consumer}", body, timeout=WAKE_S / 10)

    async def last_message(self, stream: str, subject: str) -> StoredMessage | None:
        """The newest message on a subject, read from the stream's leader; None when there is none."""
        answer = await self._unless_absent(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        return _stored(answer["message"]) if answer is not None else None

    async def message_subject(self, stream: str, sequence: int) -> str | None:
        """Subject under which a message is stored; None when it is gone."""
        answer = await self._unless_absent(f"STREAM.MSG.GET.{stream}", {"seq": sequence})
        return str(answer["message"]["subject"]) if answer else None

    async def next_message(self, stream: str, subject_filter: str, sequence: int) -> StoredMessage | None:
        """The first message from that sequence on whose subject matches; None when there is none."""
        body = {"seq": sequence, "next_by_subj": subject_filter}
        answer = await self._unless_absent(f"STREAM.MSG.GET.{stream}", body)
        return _stored(answer["message"]) if answer is not None else None

    async def delete_message(self, stream: str, sequence: int) -> None:
        """Absent is fine."""
        try:
            await self._unless_absent(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
        except JetStreamApiError as error:
            if error.code != DELETE_FAILED or "no message found" not in error.description:
                raise

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> dict[str, Any]:
        """One stored message: the broker's answer (`seq`, `duplicate`, `stream`).

        NoResponders when no stream has the subject; JetStreamApiError when the broker refuses it.
        """
        self._guard()
        try:
            answer = await self._connection.request(subject, payload, timeout=self._timeout_s, headers=headers)
        except nats.errors.NoRespondersError as error:
            raise NoResponders(subject) from error
        except (nats.errors.Error, TimeoutError) as error:
            raise Unavailable(
                f"the broker did not answer a publish to {subject}: {error!r}",
                reason="BROKER_UNREACHABLE",
                next_step="Try again with the same request_id; it is stored once",
            ) from error
        data: dict[str, Any] = json.loads(answer.data)
        if "error" in data:
            problem = data["error"]
            raise JetStreamApiError(subject, int(problem.get("err_code", 0)), str(problem.get("description", "")))
        return data

    async def publish_batch(self, messages: Sequence[BatchMessage]) -> dict[str, Any]:
        """An atomic batch: all are stored, their sequences one after the other, or none. Answers and errors as
        `publish`; `seq` is that of the last."""
        self._guard()
        batch = uuid.uuid4().hex.encode()
        for number, message in enumerate(messages[:-1], 1):
            headers = _headers(jetstream.batch_headers(message, batch, number, last=False))
            try:
                await self._connection.publish(message.subject, message.payload, headers=headers)
            except (nats.errors.Error, OSError) as error:
                raise Unavailable(f"a batch was not written: {error!r}", reason="BROKER_UNREACHABLE") from error
        last = messages[-1]
        headers = _headers(jetstream.batch_headers(last, batch, len(messages), last=True))
        return await self.publish(last.subject, last.payload, headers)

    async def barrier(self, stream: str, subject: str, *, limit_s: float = TIMEOUT_S) -> str | None:
        """Publishes a barrier, reads back under which subject it was stored, deletes it.

        None when no stream takes the subject.
        """
        async with asyncio.timeout(limit_s):
            try:
                stored = await self.publish(subject, b"", {"Nats-Msg-Id": f"barrier-{uuid.uuid4().hex}"})
            except NoResponders:
                return None
            landed = await self.message_subject(stream, int(stored["seq"]))
            await self.delete_message(stream, int(stored["seq"]))
            return landed

    async def _unless_absent(self, verb: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            return await self.request(verb, body)
        except JetStreamApiError as error:
            if error.code in (STREAM_NOT_FOUND, CONSUMER_NOT_FOUND, MESSAGE_NOT_FOUND, SEQUENCE_NOT_FOUND):
                return None
            raise


def _stored(message: Mapping[str, Any]) -> StoredMessage:
    return StoredMessage(
        str(message["subject"]),
        int(message["seq"]),
        base64.b64decode(message.get("data") or ""),
        _headers(base64.b64decode(message.get("hdrs") or "")),
    )


def _headers(raw: bytes) -> dict[str, str]:
    """Headers by name, from a block as it is stored and sent: `NATS/1.0`, then a line each."""
    lines = raw.decode(errors="replace").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name: value.strip() for name, _, value in pairs}
