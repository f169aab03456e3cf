"""The envelope codec: what goes in comes out; malformed bytes are a typed error, never anything else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.wire import envelope as codec
from headrace.wire.envelope import Envelope, MalformedMessage, ReplyTo

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
headers = st.dictionaries(texts, texts, max_size=5)
ids = st.from_regex(r"[0-9a-f]{32}", fullmatch=True)
times = st.integers(min_value=0, max_value=2**64 - 1)


@given(
    ids=st.tuples(ids, ids, ids),
    body=st.binary(max_size=2000),
    content_type=texts,
    given_headers=headers,
    sender=texts,
    sent_at=times,
    reply=st.none() | st.builds(ReplyTo, subject=texts, answer_key=texts),
    incarnation=st.integers(min_value=0, max_value=2**32 - 1),
)
def test_an_envelope_comes_back_as_it_went(
    ids: tuple[str, str, str],
    body: bytes,
    content_type: str,
    given_headers: dict[str, str],
    sender: str,
    sent_at: int,
    reply: ReplyTo | None,
    incarnation: int,
) -> None:
    raw = codec.encode_envelope(
        message_id=ids[0],
        execution_id=ids[1],
        parent_id=ids[2],
        body=body,
        content_type=content_type,
        headers=given_headers,
        sender=sender,
        sent_at_unix_ns=sent_at,
        reply_to=reply,
        incarnation=incarnation,
    )
    expected = Envelope(
        id=ids[0],
        execution_id=ids[1],
        parent_id=ids[2],
        body=body,
        content_type=content_type,
        headers=given_headers,
        sender=sender,
        sent_at_unix_ns=sent_at,
        reply_to=reply,
        incarnation=incarnation,
    )
    assert codec.decode_envelope(raw) == expected


def test_receivers_of_one_output_share_everything_but_id_and_time() -> None:
    shared = codec.encode_shared(execution_id="e", parent_id="p", body=b"b" * 1000, headers={"a": "1"})
    first = codec.decode_envelope(codec.seal(shared, "1" * 32, 10))
    second = codec.decode_envelope(codec.seal(shared, "2" * 32, 20))
    assert (first.id, first.sent_at_unix_ns) == ("1" * 32, 10)
    assert (second.id, second.sent_at_unix_ns) == ("2" * 32, 20)
    assert first.body == second.body == b"b" * 1000


@pytest.mark.parametrize("message_id", ["", "x" * 128])
def test_an_id_that_cannot_be_written(message_id: str) -> None:
    with pytest.raises(MalformedMessage):
        codec.seal(b"", message_id, 0)


def test_values_that_cannot_be_written_are_typed_errors() -> None:
    with pytest.raises(MalformedMessage):
        codec.encode_shared(execution_id="e", parent_id="p", body=b"", headers={"a": "\ud800"})
    with pytest.raises(MalformedMessage):
        codec.encode_shared(execution_id="e", parent_id="p", body="text")  # type: ignore[arg-type]
    with pytest.raises(MalformedMessage):
        codec.encode_reply(execution_id="e", status=99, body=b"", sent_at_unix_ns=0)


DECODERS: list[Callable[[bytes], object]] = [codec.decode_envelope, codec.decode_reply, codec.decode_dead_letter]


@pytest.mark.parametrize("decode", DECODERS, ids=["envelope", "reply", "dead-letter"])
@given(raw=st.binary(max_size=300))
def test_any_bytes_decode_or_raise_the_typed_error(decode: Callable[[bytes], object], raw: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        decode(raw)


@given(cut=st.integers(min_value=0, max_value=200), flip=st.integers(min_value=0, max_value=255))
def test_damaged_envelopes_decode_or_raise_the_typed_error(cut: int, flip: int) -> None:
    raw = bytearray(
        codec.encode_envelope(message_id="a" * 32, execution_id="b" * 32, body=b"c" * 90, sent_at_unix_ns=1)
    )
    if cut < len(raw):
        raw[cut] = flip
    for damaged in (bytes(raw), bytes(raw[:cut])):
        try:
            codec.decode_envelope(damaged)
        except MalformedMessage:
            continue


@pytest.mark.parametrize("raw", [b"", b"\xff", b"\x0a\x01a", b"\x12\x01e", b"\x0a\x02\xff\xff\x12\x01e"])
def test_no_envelope(raw: bytes) -> None:
    with pytest.raises(MalformedMessage):
        codec.decode_envelope(raw)


@given(status=st.integers(min_value=100, max_value=599), body=st.binary(max_size=300), given_headers=headers)
def test_a_reply_comes_back_as_it_went(status: int, body: bytes, given_headers: dict[str, str]) -> None:
    reply = codec.decode_reply(
        codec.encode_reply(
            execution_id="e",
            status=status,
            body=body,
            headers=given_headers,
            content_type="text/plain",
            step="check",
            deployment=7,
            version=3,
            revision="sha256:aa",
            sent_at_unix_ns=5,
        )
    )
    assert (reply.status, reply.body, dict(reply.headers)) == (status, body, given_headers)
    assert (reply.step, reply.deployment, reply.version, reply.revision) == ("check", 7, 3, "sha256:aa")
    assert (reply.content_type, reply.sent_at_unix_ns) == ("text/plain", 5)
