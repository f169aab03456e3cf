"""Ids of stimuli, executions and messages: deterministic, so that a redelivery repeats them exactly.

A message id is a hash of (parent message id, sending step, output, receiving step, incarnation) and never of
attempt, revision or trace (DESIGN law 4). 128 bits of BLAKE2b, as 32 hex digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b

_KEY = re.compile(r"[0-9A-Za-z_-]{1,64}")
_EXECUTIONS = blake2b(digest_size=16, person=b"hr-execution")
_STIMULI = blake2b(digest_size=16, person=b"hr-stimulus")


def _hash(kind: bytes, *parts: str) -> str:
    digest = blake2b(digest_size=16, person=kind)
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(4, "big"))
        digest.update(raw)
    return digest.hexdigest()


def stimulus_id(flow: str, source: str, value: str) -> str:
    """Id of a stimulus. `source` says what `value` is: `webhook` (random), `key` (Idempotency-Key),
    `tick` (trigger and instant), `inject` (request id), `listener` (trigger and source id)."""
    return _hash(b"hr-stimulus", flow, source, value)


class StimulusIds:
    """`stimulus_id` for one flow and source, and `first_message_id` for one entry: what is the same for all is written
    once."""

    __slots__ = ("_begun", "_messages")

    def __init__(self, flow: str, source: str, entry: str) -> None:
        self._begun = _STIMULI.copy()
        for raw in (flow.encode(), source.encode()):
            self._begun.update(len(raw).to_bytes(4, "big") + raw)
        self._messages = OutputIds("", entry)

    def stimulus(self, value: str) -> str:
        """See `stimulus_id`."""
        raw = value.encode()
        digest = self._begun.copy()
        digest.update(len(raw).to_bytes(4, "big") + raw)
        return digest.hexdigest()

    def first_message(self, stimulus: str) -> str:
        """See `first_message_id`."""
        return self._messages.of(stimulus, "")


def execution_id(stimulus: str) -> str:
    """Id of the execution that a stimulus starts; also used as its trace id."""
    raw = stimulus.encode()
    digest = _EXECUTIONS.copy()
    digest.update(len(raw).to_bytes(4, "big") + raw)
    return digest.hexdigest()


def first_message_id(stimulus: str, trigger: str) -> str:
    """Id of the message that carries the stimulus to the trigger step."""
    return _hash(b"hr-message", stimulus, "", "", trigger, "")


def output_message_id(parent: str, step: str, output: str, receiver: str, incarnation: int = 0) -> str:
    """Id of one output on one edge; `output` is its index ("0", "1", ...) or the emit's own key ("k:...")."""
    return _hash(b"hr-message", parent, step, output, receiver, str(incarnation) if incarnation else "")


_OUTPUTS = blake2b(digest_size=16, person=b"hr-message")
_LENGTH_OF_AN_ID = (32).to_bytes(4, "big")
_OUTPUTS_OF_AN_ID = _OUTPUTS.copy()
_OUTPUTS_OF_AN_ID.update(_LENGTH_OF_AN_ID)
_KEPT_TAILS = 64


class OutputIds:
    """`output_message_id` for one edge: what is the same for all its messages is written once."""

    __slots__ = ("_receiver", "_step", "_tails")

    def __init__(self, step: str, receiver: str) -> None:
        self._step, self._receiver = step, receiver
        self._tails: dict[str, bytes] = {}

    def of(self, parent: str, output: str, incarnation: int = 0) -> str:
        """See `output_message_id`."""
        tail = None if incarnation else self._tails.get(output)
        if tail is None:
            tail = self._tail(output, incarnation)
        raw = parent.encode()
        digest = _OUTPUTS.copy()
        digest.update((_LENGTH_OF_AN_ID if len(raw) == 32 else len(raw).to_bytes(4, "big")) + raw + tail)
        return digest.hexdigest()

    def of_first(self, parents: Iterable[str]) -> list[str]:
        """Of the output with index 0 of each of these messages."""
        tail = self._tails.get("0") or self._tail("0", 0)
        copy, found = _OUTPUTS_OF_AN_ID.copy, []
        for parent in parents:
            raw = parent.encode()
            if len(raw) == 32:
                digest = copy()
                digest.update(raw + tail)
                found.append(digest.hexdigest())
            else:
                found.append(self.of(parent, "0"))
        return found

    def _tail(self, output: str, incarnation: int) -> bytes:
        parts = [self._step, output, self._receiver, str(incarnation) if incarnation else ""]
        tail = b"".join(len(raw).to_bytes(4, "big") + raw for raw in map(str.encode, parts))
        if not incarnation and len(self._tails) < _KEPT_TAILS:
            self._tails[output] = tail
        return tail


def unreadable_id(header: str, sequence: int, step: str) -> str:
    """Id of a stored message that is no envelope: that of its Nats-Msg-Id header, else of its place in the stream;
    the same whenever it is read, so that it is dead-lettered once."""
    return header or output_message_id(str(sequence), "", "", step)


def dead_letter_id(message: str, step: str) -> str:
    """Id of the dead letter of a message that waited for (or failed at) a step: whoever writes it."""
    return output_message_id(message, step, "dead-letter", "_dead")


def doubt_id(message: str, step: str) -> str:
    """Id of the record that a message was in doubt at a step."""
    return output_message_id(message, step, "in-doubt", "_doubt")


def moved_message_id(message: str, step: str, incarnation: int) -> str:
    """Id of a message that was moved to another deployment's step, by the choice that drew the incarnation."""
    return _hash(b"hr-moved", message, step, str(incarnation))


def replayed_message_id(message: str, step: str, incarnation: int) -> str:
    """Id of a dead letter's message that is sent again; the incarnation was drawn when that was decided."""
    return _hash(b"hr-replayed", message, step, str(incarnation))


def answer_key(flow: str, idempotency_key: str) -> str:
    """Key in the answers bucket."""
    return _hash(b"hr-answer", flow, idempotency_key)


def is_answer_key(text: str) -> bool:
    """Whether it can be a key of the answers bucket: what else an envelope names never will be."""
    return _KEY.fullmatch(text) is not None


def body_digest(body: bytes) -> str:
    """Tells whether a repeated Idempotency-Key came with the same body."""
    return blake2b(body, digest_size=16, person=b"hr-body").hexdigest()
