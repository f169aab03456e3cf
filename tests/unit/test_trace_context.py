"""W3C trace context and baggage: what is let in, what is passed on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.trace_context import (
    MAX_BAGGAGE_BYTES,
    MAX_BAGGAGE_MEMBERS,
    bounded_baggage,
    format_traceparent,
    looks_like_traceparent,
    parse_traceparent,
    process_span_id,
    publish_span_id,
    queue_span_id,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
hex_ids = st.text("0123456789abcdef", min_size=16, max_size=16).filter(lambda text: text != "0" * 16)


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-fe", False),
        (f"01-{TRACE}-{SPAN}-01-more", True),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-1", None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        ("twice", None),
        ("", None),
    ],
)
def test_traceparents(value: str, sampled: bool | None) -> None:
    found = parse_traceparent(value)
    assert (found.sampled if found else None) is sampled
    assert found is None or (found.trace_id, found.span_id) == (TRACE, SPAN)


@given(hex_ids, hex_ids, st.booleans())
def test_what_is_formatted_is_parsed(trace: str, span: str, sampled: bool) -> None:
    text = format_traceparent(trace * 2, span, sampled=sampled)
    assert parse_traceparent(text) == (trace * 2, span, sampled)
    assert looks_like_traceparent(text)


@given(st.text(max_size=80))
def test_text_is_no_traceparent_that_is_not_one(value: str) -> None:
    found = parse_traceparent(value)
    assert found is None or looks_like_traceparent(value[:55])


def test_baggage_keeps_what_is_well_formed() -> None:
    given_value = "user=ada , tenant=7;secret;level=3,bad value,=x,naïve=1,\tq=%20,,e="
    assert bounded_baggage(given_value) == "user=ada,tenant=7;secret;level=3,q=%20,e="


@given(st.text(max_size=300) | st.lists(st.from_regex(r"[a-z]{1,5}=[a-z]{0,200}", fullmatch=True)).map(",".join))
def test_baggage_is_bounded_and_stays_as_it_is(value: str) -> None:
    kept = bounded_baggage(value)
    assert bounded_baggage(kept) == kept
    assert len(kept.encode()) <= MAX_BAGGAGE_BYTES
    assert "\n" not in kept
    assert "\r" not in kept


def test_baggage_beyond_its_limits_is_left_out() -> None:
    many = ",".join(f"k{number}=v" for number in range(100))
    assert bounded_baggage(many).count(",") == MAX_BAGGAGE_MEMBERS - 1
    assert bounded_baggage(f"a=b,long={'x' * MAX_BAGGAGE_BYTES},c=d") == "a=b"


@given(hex_ids, hex_ids)
def test_span_ids_of_a_message_differ(first: str, second: str) -> None:
    message = first + second
    found = {publish_span_id(message), process_span_id(message), queue_span_id(message)}
    assert len(found) == 3 or first == second or len(set(message)) < 4
