"""JetStream's wire forms: ack subjects of both versions, answers, status lines, headers."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.wire import jetstream
from headrace.wire.jetstream import AckSubject
from headrace.wire.jetstream_answers import MalformedAnswer, parse_pub_ack

EXPECTED = AckSubject("hr_default_orders", "d1_price", 2, 17, 18, 1_700_000_000_123_456_789, 4)
V1 = "$JS.ACK.hr_default_orders.d1_price.2.17.18.1700000000123456789.4"


@pytest.mark.parametrize(
    "subject",
    [
        V1,
        "$JS.ACK._.ACC0UNT.hr_default_orders.d1_price.2.17.18.1700000000123456789.4",
        "$JS.ACK.hub.ACC0UNT.hr_default_orders.d1_price.2.17.18.1700000000123456789.4.r4nd0m",
    ],
)
def test_ack_subjects_of_both_versions(subject: str) -> None:
    assert jetstream.parse_ack_subject(subject.encode()) == EXPECTED


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "$JS.ACK",
        V1 + ".x",
        V1 + ".a.b.c.d",
        V1.replace("17.18", "x.18"),
        V1.replace("$JS", "$KV"),
        "a.b.c.d.e.f.g.h.i",
    ],
)
def test_what_is_no_ack_subject(subject: str) -> None:
    with pytest.raises(MalformedAnswer):
        jetstream.parse_ack_subject(subject.encode())


@given(st.text(max_size=120))
def test_any_subject_parses_or_raises_the_typed_error(text: str) -> None:
    for subject in (text, "$JS.ACK." + text):
        try:
            jetstream.parse_ack_subject(subject.encode())
        except MalformedAnswer:
            continue


def test_publish_acknowledgements() -> None:
    stored = parse_pub_ack(b'{"stream":"S","seq":7}')
    assert (stored.seq, stored.duplicate, stored.error) == (7, False, None)
    assert parse_pub_ack(b'{"stream":"S","seq":7,"duplicate":true,"domain":"d"}').duplicate
    refused = parse_pub_ack(
        b'{"error":{"code":503,"err_code":10077,"description":"maximum messages per subject exceeded"},'
        b'"stream":"S","seq":0}'
    )
    assert refused.error is not None
    assert refused.error.err_code == jetstream.EDGE_FULL


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b'{"seq":"7"}', b"\xff", b'{"seq":-1.5}', b"null"])
def test_what_is_no_publish_acknowledgement(raw: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        parse_pub_ack(raw)


@given(st.binary(max_size=100))
def test_any_answer_parses_or_raises_the_typed_error(raw: bytes) -> None:
    jetstream.parse_status(raw)
    jetstream.parse_delivery_headers(raw)
    with contextlib.suppress(MalformedAnswer):
        parse_pub_ack(raw)


def test_status_lines() -> None:
    assert jetstream.parse_status(b"NATS/1.0 503\r\n\r\n") == (503, "")
    assert jetstream.parse_status(b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 1\r\n\r\n") == (
        408,
        "Request Timeout",
    )
    assert jetstream.parse_status(b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n") == (0, "")


printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60)


@given(printable, printable)
def test_headers_come_back_as_they_went(message_id: str, traceparent: str) -> None:
    header = jetstream.publish_headers(message_id, traceparent)
    assert header.startswith(b"NATS/1.0\r\n")
    assert header.endswith(b"\r\n\r\n")
    assert jetstream.parse_delivery_headers(header) == (message_id, traceparent)


@pytest.mark.parametrize("bad", ["a\r\nEvil: 1", "\n", "a\x00"])
def test_values_that_would_end_a_line_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="control"):
        jetstream.publish_headers(bad, "")
    with pytest.raises(ValueError, match="control"):
        jetstream.publish_headers("id", bad)


def test_a_pull_request_is_json() -> None:
    request = json.loads(jetstream.pull_request(64, expires_s=30, heartbeat_s=0.5))
    assert request == {"batch": 64, "expires": 30_000_000_000, "idle_heartbeat": 500_000_000}


@given(st.sampled_from([V1, V1 + ".r4nd0m"]) | st.text(max_size=80), st.lists(st.integers(0, 2**63), max_size=7))
def test_what_is_needed_of_a_delivery_is_what_its_ack_subject_says(text: str, numbers: list[int]) -> None:
    for subject in (text.encode(), ("$JS.ACK.s.c." + ".".join(map(str, numbers))).encode()):
        with contextlib.suppress(MalformedAnswer):
            facts = jetstream.parse_ack_subject(subject)
            expected = (facts.delivered, facts.stream_sequence, facts.consumer_sequence, facts.stored_at_unix_ns)
            assert jetstream.delivery_numbers(subject) == expected
            prefix = jetstream.ack_prefix(facts.stream, facts.consumer)
            if subject.startswith(prefix):
                assert jetstream.delivery_numbers(subject, len(prefix)) == expected


fixed = st.text(st.characters(min_codepoint=10, max_codepoint=255), min_size=32, max_size=32) | st.just("0" * 32)


@given(st.binary(max_size=140) | st.builds(lambda i, t: b"NATS/1.0\r\nNats-Msg-Id: %b\r\ntraceparent: %b\r\n\r\n" % (
    i.encode("latin-1"), (t + t)[:55].encode("latin-1")), fixed, fixed))  # fmt: skip
def test_headers_cut_by_place_are_those_that_are_read(raw: bytes) -> None:
    assert jetstream.delivery_headers(raw) == jetstream.parse_delivery_headers(raw)
