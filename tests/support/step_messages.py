"""What goes into one step and what comes of it: at the next step, at the caller, among the dead letters."""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import nats.errors

from headrace.model import subjects
from headrace.model.message_ids import execution_id, first_message_id, stimulus_id
from headrace.model.slots import keying
from headrace.wire.envelope import (
    DeadLetter,
    Envelope,
    Reply,
    ReplyTo,
    decode_dead_letter,
    decode_envelope,
    decode_reply,
    encode_envelope,
)
from tests.support.eventually import eventually
from tests.support.step_assets import STEP, WORKSPACE, StepAssets

REPLY_SUBJECT = "hr.default._reply.test"


@dataclass
class Arrived:
    """One message stored on an edge."""

    envelope: Envelope
    message_id: str
    sequence: int
    subject: str = ""


@dataclass
class StepMessages(StepAssets):
    """Inputs of the step are stored as by the ingress; what arrives is taken as by the next step."""

    replies: list[Reply] = field(default_factory=list, init=False)

    def sidecar_log(self) -> str:
        """Shown when messages do not come."""
        raise NotImplementedError

    async def listen_for_replies(self) -> None:
        """As a gateway does; `replies_subscription` ends it."""

        async def take_reply(message: Any) -> None:
            self.replies.append(decode_reply(message.data))

        self.replies_subscription = await self.connection.subscribe(REPLY_SUBJECT, cb=take_reply)
        await self.connection.flush()

    def stimulus(self, label: str) -> str:
        return stimulus_id(self.flow, "inject", label)

    async def inject(
        self, body: bytes, label: str = "", *, reply: bool = False, answer_key: str = "", headers: Any = None
    ) -> str:
        """Publishes a stimulus to the ingress; answers the id of the input message."""
        stimulus = self.stimulus(label or uuid.uuid4().hex)
        message_id = first_message_id(stimulus, STEP)
        payload = encode_envelope(
            message_id=message_id,
            execution_id=execution_id(stimulus),
            sent_at_unix_ns=time.time_ns(),
            body=body,
            headers=headers,
            reply_to=ReplyTo(subject=REPLY_SUBJECT, answer_key=answer_key) if reply else None,
        )
        slot = keying(self.key, self.slots).place(headers or {}, body, message_id).slot
        subject = subjects.ingress_subject(WORKSPACE, self.flow, STEP, slot)
        await self.publish(subject, payload, message_id)
        return message_id

    async def publish(self, subject: str, payload: bytes, message_id: str) -> None:
        jetstream = self.connection.jetstream(timeout=5)

        async def stored() -> bool:
            try:
                await jetstream.publish(subject, payload, headers={"Nats-Msg-Id": message_id})
            except (nats.errors.Error, TimeoutError) as error:
                # A broker that has just come back has no stream yet; the id makes a repeat harmless.
                raise AssertionError(f"not stored: {error!r}") from error
            return True

        await eventually(stored)

    async def take(self, count: int, step: str = "next", *, within_s: float = 15.0) -> list[Arrived]:
        """Takes (and acknowledges) that many messages from an edge."""
        found: list[Arrived] = []
        deadline = time.monotonic() + within_s
        jetstream = self.connection.jetstream(timeout=5)
        consumer = subjects.step_consumer(self.deployment, step)
        subscription = await jetstream.pull_subscribe_bind(consumer, self.stream)
        try:
            while len(found) < count:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise AssertionError(f"{len(found)} of {count} arrived at {step}\n{self.sidecar_log()}")
                with contextlib.suppress(TimeoutError):
                    for message in await subscription.fetch(min(count - len(found), 500), timeout=min(left_s, 1.0)):
                        headers = message.headers or {}
                        envelope = decode_envelope(message.data)
                        sequence = message.metadata.sequence.stream
                        found.append(Arrived(envelope, headers["Nats-Msg-Id"], sequence, message.subject))
                        await message.ack()
        finally:
            await subscription.unsubscribe()
        await self.connection.flush()  # the acknowledgements, too, are with the broker
        return found

    async def waiting(self, step: str = "next") -> int:
        """Messages stored on an edge and not yet acknowledged by its step."""
        info = await self.assets.stream_info(self.stream, self.edge(step, "*"))
        assert info is not None
        return sum((info["state"].get("subjects") or {}).values())

    async def until_done(self, *, within_s: float = 15.0) -> None:
        """Until every input of the step is acknowledged."""

        async def check() -> bool:
            return await self.waiting(STEP) == 0

        await eventually(check, within_s=within_s)

    async def dead_letters(self) -> list[DeadLetter]:
        """All dead letters so far, oldest first."""
        return [
            decode_dead_letter(raw) for raw in await self._stored(subjects.dead_letter_stream(WORKSPACE, self.flow))
        ]

    async def doubts(self) -> list[DeadLetter]:
        """Records of messages in doubt, oldest first."""
        return [decode_dead_letter(raw) for raw in await self._stored(subjects.doubt_stream(WORKSPACE))]

    async def log_lines(self) -> list[bytes]:
        """All log lines so far, serialized."""
        return await self._stored(subjects.log_stream(WORKSPACE))

    async def _stored(self, stream: str) -> list[bytes]:
        jetstream = self.connection.jetstream(timeout=5)
        info = await jetstream.stream_info(stream)
        found = []
        for sequence in range(max(1, info.state.first_seq), info.state.last_seq + 1):
            found.append((await jetstream.get_msg(stream, sequence)).data or b"")
        return found
