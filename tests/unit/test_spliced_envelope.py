"""What is spliced and what protobuf writes are the same envelope."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.message_ids import OutputIds, output_message_id
from headrace.wire.envelope import Envelope, MalformedMessage, ReplyTo, encode_shared, seal
from headrace.wire.spliced_envelope import EnvelopeSplicer, inherited_fields

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ids = st.from_regex(r"[0-9a-f]{32}", fullmatch=True) | texts
bodies = st.binary(max_size=300) | st.integers(0, 20_000).map(bytes)
replies = st.none() | st.builds(ReplyTo, subject=texts, answer_key=texts)


@given(
    ids, ids, bodies, st.lists(texts, min_size=1, max_size=3), st.dictionaries(texts, texts, max_size=4), texts,
    replies, st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.booleans(), texts | st.just("a=b," * 600),
)  # fmt: skip
def test_both_write_the_same(
    execution: str,
    parent: str,
    body: bytes,
    content_types: list[str],
    headers: dict[str, str],
    sender: str,
    reply_to: ReplyTo | None,
    incarnation: int,
    stored_at: int,
    in_doubt: bool,
    baggage: str,
) -> None:
    splicer = EnvelopeSplicer(sender)
    raw_reply = reply_to.SerializeToString() if reply_to is not None else b""
    inherited = inherited_fields(raw_reply, incarnation, in_doubt, baggage)
    for content_type in content_types:
        spliced = splicer.shared(execution, parent, body, content_type, headers, stored_at, inherited)
        written = encode_shared(
            execution_id=execution,
            parent_id=parent,
            body=body,
            content_type=content_type,
            headers=headers,
            sender=sender,
            reply_to=reply_to if raw_reply else None,
            incarnation=incarnation,
            input_stored_at_unix_ns=stored_at,
            in_doubt=in_doubt,
            baggage=baggage,
        )
        assert Envelope.FromString(seal(spliced, "id", 7)) == Envelope.FromString(seal(written, "id", 7))


@given(ids, ids, bodies, st.lists(texts, min_size=1, max_size=3), texts, st.integers(0, 2**64 - 1), ids)
def test_in_one_piece_it_is_the_same(
    execution: str, parent: str, body: bytes, content_types: list[str], sender: str, stored_at: int, message: str
) -> None:
    splicer = EnvelopeSplicer(sender)
    for content_type in content_types * 2:
        try:
            whole = seal(splicer.shared(execution, parent, body, content_type, {}, stored_at, b""), message, 7)
        except MalformedMessage:
            with pytest.raises(MalformedMessage):
                splicer.sealed(execution, parent, body, content_type, stored_at, message, 7)
            continue
        sealed = splicer.sealed(execution, parent, body, content_type, stored_at, message, 7)
        assert Envelope.FromString(sealed) == Envelope.FromString(whole)


@pytest.mark.parametrize("bad", [{"a": "\ud800"}, {"\ud800": "a"}])
def test_what_is_no_text_is_refused_as_by_protobuf(bad: dict[str, str]) -> None:
    with pytest.raises(MalformedMessage):
        EnvelopeSplicer("step").shared("e", "p", b"", "", bad, 0, b"")
    with pytest.raises(MalformedMessage):
        encode_shared(execution_id="e", parent_id="p", body=b"", headers=bad)


@given(ids, texts, texts, st.lists(st.integers(0, 1000).map(str) | texts, min_size=1, max_size=5), st.integers(0, 9))
def test_ids_of_outputs_are_those_of_law_4(
    parent: str, step: str, receiver: str, outputs: list[str], incarnation: int
) -> None:
    made = OutputIds(step, receiver)
    for output in outputs * 2:
        assert made.of(parent, output, incarnation) == output_message_id(parent, step, output, receiver, incarnation)


@given(st.lists(ids, max_size=5), texts, texts)
def test_ids_of_first_outputs_are_those_of_each(parents: list[str], step: str, receiver: str) -> None:
    made = OutputIds(step, receiver)
    assert made.of_first(parents) == [output_message_id(parent, step, "0", receiver) for parent in parents]
