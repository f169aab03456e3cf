"""What Headrace uses of JetStream, in memory: the API requests of `headrace.edge.jetstream_assets`, publishing
through the ingress transform or by a fence, atomic batches, and durable pull consumers of work-queue streams.

It claims exactly what tests/contract/test_broker_model.py runs against a real nats-server as well. Time is
whatever `clock` answers, in seconds.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import nats.errors

from tests.support.memory_bucket import MemoryBucket, matches
from tests.support.memory_stream import Answer, Consumer, Stored, Stream

STREAM_NOT_FOUND = 10059
STREAM_EXISTS = 10058
CONSUMER_NOT_FOUND = 10014
NO_MESSAGE = 10037
SEQUENCE_NOT_FOUND = 10043
FILTER_NOT_UNIQUE = 10100
EDGE_FULL = 10077
WRONG_LAST_SEQUENCE = 10071
BATCH_INCOMPLETE = 10176
DUPLICATE_IN_BATCH = 10201
DEFAULT_WINDOW_NS = 120_000_000_000


class ApiRefusal(Exception):
    """An error answer; `code` is JetStream's err_code."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code
        self.description = description


class MemoryBroker:
    """`on_stored(stream, message)` is called with each message just stored."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.streams: dict[str, Stream] = {}
        self.buckets: dict[str, MemoryBucket] = {}
        self.on_stored: Callable[[str, Stored], None] | None = None
        self.on_purged: Callable[[str, list[Stored]], None] | None = None
        self.on_config: Callable[[str, dict[str, Any]], None] | None = None
        self._batches: dict[str, list[tuple[str, bytes, Mapping[str, str]]]] = {}

    def bucket(self, name: str) -> MemoryBucket:
        return self.buckets.setdefault(name, MemoryBucket(name))

    async def request(
        self, subject: str, payload: bytes = b"", timeout: float = 5.0, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The face of a connection's `request`."""
        return self.answer(subject, payload, headers)

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """The face of a connection's `publish`; what the broker would answer nobody hears."""
        with contextlib.suppress(nats.errors.NoRespondersError):
            self.answer(subject, payload, headers)

    def answer(self, subject: str, payload: bytes, headers: Mapping[str, str] | None) -> Answer:
        try:
            if subject.startswith("$JS.API."):
                area, verb, *names = subject.removeprefix("$JS.API.").split(".")
                body = json.loads(payload) if payload else {}
                answered = getattr(self, f"_{area}_{verb}".lower())(*names, body)
            else:
                answered = self.accept(subject, payload, headers or {})
        except ApiRefusal as error:
            answered = {"error": {"code": 400, "err_code": error.code, "description": error.description}}
        return Answer(json.dumps(answered).encode())

    def _consumer_msg(self, verb: str, stream: str, consumer: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A pull that only wakes: consumers of this broker never sleep."""
        return {}

    # Messages.

    def accept(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        if batch := headers.get("Nats-Batch-Id"):
            return self._accept_of_batch(batch, subject, payload, headers)
        for name, stream in self.streams.items():
            if stream.lists(subject):
                return self._store(name, stream, stream.transformed(subject), payload, headers)
        raise nats.errors.NoRespondersError

    def _accept_of_batch(self, batch: str, subject: str, payload: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        """All are stored at the last one, or none."""
        if not any(stream.lists(subject) for stream in self.streams.values()):
            raise nats.errors.NoRespondersError
        held = self._batches.setdefault(batch, [])
        held.append((subject, payload, headers))
        if int(headers["Nats-Batch-Sequence"]) != len(held):
            del self._batches[batch]
            raise ApiRefusal(BATCH_INCOMPLETE, "atomic publish batch is incomplete")
        if "Nats-Batch-Commit" not in headers:
            return {}
        del self._batches[batch]
        places = [next(item for item in self.streams.items() if item[1].lists(each)) for each, _, _ in held]
        for (_, stream), (each, _, own) in zip(places, held, strict=True):
            if self._known(stream, own):
                raise ApiRefusal(DUPLICATE_IN_BATCH, "batch publish contains duplicate message id")
            self._check_fence(stream, each, own)
            self._check_room(stream, each, own)
        answered: dict[str, Any] = {}
        for (name, stream), (each, data, own) in zip(places, held, strict=True):
            answered = self._keep(name, stream, each, data, own)
        return {**answered, "batch": batch, "count": len(held)}

    def _store(
        self, name: str, stream: Stream, subject: str, payload: bytes, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        self._check_fence(stream, subject, headers)
        if known := self._known(stream, headers):
            return {"stream": name, "seq": known, "duplicate": True}
        self._check_room(stream, subject, headers)
        return self._keep(name, stream, subject, payload, headers)

    def _known(self, stream: Stream, headers: Mapping[str, str]) -> int:
        """The sequence under which a message of this id was stored within the window; 0 if none was."""
        sequence, at = stream.ids.get(headers.get("Nats-Msg-Id", ""), (0, 0.0))
        window_s = stream.config.get("duplicate_window", DEFAULT_WINDOW_NS) / 1e9
        return sequence if self._clock() - at < window_s else 0

    @staticmethod
    def _check_fence(stream: Stream, subject: str, headers: Mapping[str, str]) -> None:
        expected = headers.get("Nats-Expected-Last-Subject-Sequence")
        if expected is None:
            return
        on = headers.get("Nats-Expected-Last-Subject-Sequence-Subject", subject)
        last = max((message.sequence for message in stream.messages.values() if message.subject == on), default=0)
        if int(expected) != last:
            raise ApiRefusal(WRONG_LAST_SEQUENCE, f"wrong last sequence: {last}")

    @staticmethod
    def _check_room(stream: Stream, subject: str, headers: Mapping[str, str]) -> None:
        limit = stream.config.get("max_msgs_per_subject", -1)
        if limit <= 0 or "Nats-Rollup" in headers:
            return
        if sum(message.subject == subject for message in stream.messages.values()) >= limit:
            raise ApiRefusal(EDGE_FULL, "maximum messages per subject exceeded")

    def _keep(
        self, name: str, stream: Stream, subject: str, payload: bytes, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        if "Nats-Rollup" in headers:
            for number in [item.sequence for item in stream.messages.values() if item.subject == subject]:
                self._drop(stream, number)
        stream.last += 1
        message_id = headers.get("Nats-Msg-Id", "")
        message = Stored(stream.last, subject, payload, message_id, headers)
        stream.messages[message.sequence] = message
        if message_id:
            stream.ids[message_id] = (message.sequence, self._clock())
        if self.on_stored is not None:
            self.on_stored(name, message)
        return {"stream": name, "seq": message.sequence}

    def take(self, stream: str, durable: str) -> Stored | None:
        """The next message that a pull of the durable is given; None when there is none. ApiRefusal if it is gone."""
        consumer = self._consumer(stream, durable)
        if consumer.paused:
            return None
        now = self._clock()
        held = self.streams[stream].messages
        for sequence, due in consumer.unacked.items():
            if due <= now and sequence in held:
                return self._deliver(consumer, held[sequence], now)
        for sequence, message in held.items():
            if sequence >= consumer.cursor and consumer.takes(message.subject):
                consumer.cursor = sequence + 1
                return self._deliver(consumer, message, now)
        return None

    def _deliver(self, consumer: Consumer, message: Stored, now: float) -> Stored:
        consumer.unacked[message.sequence] = now + consumer.config["ack_wait"] / 1e9
        consumer.delivered += 1
        consumer.deliveries[message.sequence] = consumer.deliveries.get(message.sequence, 0) + 1
        return message

    def ack(self, stream: str, durable: str, sequence: int) -> bool:
        """Removes a delivered message; False when the durable is gone (no responders)."""
        found = self.streams.get(stream)
        consumer = found.consumers.get(durable) if found is not None else None
        if found is None or consumer is None:
            return False
        if consumer.unacked.pop(sequence, None) is not None:
            found.messages.pop(sequence, None)
        return True

    def reset(self, stream: str, durable: str) -> None:
        """The durable begins anew: whatever is stored for it is delivered (again). ApiRefusal if it is gone."""
        consumer = self._consumer(stream, durable)
        consumer.cursor, consumer.delivered = 1, 0
        consumer.unacked.clear()

    def take_numbered(self, stream: str, durable: str) -> tuple[Stored | None, int]:
        """As `take`, with the delivery's number among all of its durable."""
        message = self.take(stream, durable)
        return message, self._consumer(stream, durable).delivered

    def extend(self, stream: str, durable: str, sequence: int) -> None:
        """The message is still being worked on."""
        found = self.streams.get(stream)
        consumer = found.consumers.get(durable) if found is not None else None
        if consumer is not None and sequence in consumer.unacked:
            consumer.unacked[sequence] = self._clock() + consumer.config["ack_wait"] / 1e9

    # Streams.

    def _stream(self, name: str) -> Stream:
        if name not in self.streams:
            raise ApiRefusal(STREAM_NOT_FOUND, "stream not found")
        return self.streams[name]

    def _info(self, name: str, subjects_filter: str = "") -> dict[str, Any]:
        stream = self._stream(name)
        state: dict[str, Any] = {"messages": len(stream.messages), "last_seq": stream.last}
        if subjects_filter:
            counts: dict[str, int] = {}
            for message in stream.messages.values():
                if matches(subjects_filter, message.subject):
                    counts[message.subject] = counts.get(message.subject, 0) + 1
            if counts:
                state["subjects"] = counts
        return {"config": stream.config, "state": state}

    def _stream_info(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._info(name, body.get("subjects_filter", ""))

    def _stream_create(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        if name in self.streams:
            if self.streams[name].config != body:
                raise ApiRefusal(STREAM_EXISTS, "stream name already in use with a different configuration")
        else:
            self.streams[name] = Stream(body)
            if self.on_config is not None:
                self.on_config(name, body)
        return self._info(name)

    def _stream_update(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        self._stream(name).config = body
        if self.on_config is not None:
            self.on_config(name, body)
        return self._info(name)

    def _stream_delete(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        self._stream(name)
        del self.streams[name]
        return {"success": True}

    def _stream_purge(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        stream = self._stream(name)
        pattern = body.get("filter") or ">"
        before = body.get("seq") or stream.last + 1
        gone = [
            number
            for number, message in stream.messages.items()
            if number < before and matches(pattern, message.subject)
        ]
        if self.on_purged is not None:
            self.on_purged(name, [stream.messages[number] for number in gone])
        for number in gone:
            self._drop(stream, number)
        return {"success": True, "purged": len(gone)}

    @staticmethod
    def _drop(stream: Stream, number: int) -> None:
        del stream.messages[number]
        for consumer in stream.consumers.values():
            consumer.unacked.pop(number, None)

    def _stream_msg(self, verb: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        stream = self._stream(name)
        message = stream.messages.get(body.get("seq", 0))
        if subject := body.get("last_by_subj"):
            newest_first = reversed(stream.messages.values())
            message = next((item for item in newest_first if matches(subject, item.subject)), None)
        if pattern := body.get("next_by_subj"):
            found = (item for item in stream.messages.values() if matches(pattern, item.subject))
            message = next((item for item in found if item.sequence >= body["seq"]), None)
        if verb == "GET":
            if message is None:
                raise ApiRefusal(NO_MESSAGE, "no message found")
            lines = ["NATS/1.0", *(f"{name}: {value}" for name, value in message.headers.items()), "", ""]
            head = base64.b64encode("\r\n".join(lines).encode()).decode()
            data = base64.b64encode(message.payload).decode()
            return {"message": {"subject": message.subject, "seq": message.sequence, "data": data, "hdrs": head}}
        if message is None:
            raise ApiRefusal(SEQUENCE_NOT_FOUND, f"sequence {body['seq']} not found")
        self._drop(stream, message.sequence)
        return {"success": True}

    # Consumers.

    def _consumer(self, stream: str, durable: str) -> Consumer:
        consumers = self._stream(stream).consumers
        if durable not in consumers:
            raise ApiRefusal(CONSUMER_NOT_FOUND, "consumer not found")
        return consumers[durable]

    def _consumer_list(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        stream = self._stream(name)
        infos = [
            {
                "name": durable,
                "config": consumer.config,
                "paused": consumer.paused,
                "num_ack_pending": len(consumer.unacked),
                "num_pending": sum(
                    consumer.takes(message.subject) and number not in consumer.unacked
                    for number, message in stream.messages.items()
                ),
            }
            for durable, consumer in sorted(stream.consumers.items())
        ]
        return {"total": len(infos), "consumers": infos[body.get("offset", 0) :]}

    def _consumer_create(self, name: str, durable: str, body: dict[str, Any]) -> dict[str, Any]:
        stream = self._stream(name)
        config = dict(body["config"])
        paused = bool(config.pop("pause_until", ""))
        made = Consumer(config, paused)
        for other, consumer in stream.consumers.items():
            if other != durable and set(consumer.filters()) & set(made.filters()):
                raise ApiRefusal(FILTER_NOT_UNIQUE, "filtered consumer not unique on workqueue stream")
        present = stream.consumers.get(durable)
        if present is None:
            stream.consumers[durable] = made
        else:
            present.config, present.paused = config, paused
        return {"name": durable, "config": config}

    def _consumer_reset(self, name: str, durable: str, body: dict[str, Any]) -> dict[str, Any]:
        self.reset(name, durable)
        return {"success": True}

    def _consumer_delete(self, name: str, durable: str, body: dict[str, Any]) -> dict[str, Any]:
        self._consumer(name, durable)
        del self.streams[name].consumers[durable]
        return {"success": True}

    def _consumer_pause(self, name: str, durable: str, body: dict[str, Any]) -> dict[str, Any]:
        consumer = self._consumer(name, durable)
        consumer.paused = bool(body.get("pause_until"))
        return {"paused": consumer.paused}
