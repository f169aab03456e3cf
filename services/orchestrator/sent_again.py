"""A stored message that is sent once more: moved to another deployment, to the trigger's place now, or replayed."""

from __future__ import annotations

from headrace.api.message.v1.message_pb2 import Envelope
from headrace.model.slots import keying


def sent_again(original: Envelope, message_id: str, incarnation: int, at_ns: int) -> Envelope:
    """Its copy under an id and incarnation of its own; what was measured of the original on its way is left out."""
    again = Envelope()
    again.CopyFrom(original)
    again.id, again.incarnation = message_id, incarnation
    again.sent_at_unix_ns = at_ns
    again.input_stored_at_unix_ns = 0
    return again


def slot_at(envelope: Envelope, key: str, slots: int) -> int:
    """The slot of the receiving step that has `key` and `slots`."""
    return keying(key, slots).place(envelope.headers, envelope.body, envelope.id).slot
