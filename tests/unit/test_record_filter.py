"""Filters of hops, as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.errors import InvalidInput
from headrace.model.hop_record import HopOutcome
from headrace.model.record_filter import parse_filter
from tests.support.records import hop, root


@pytest.mark.parametrize(
    "text",
    [
        "", "step=price", "step = price AND component=pricing", "step=price, outcome=processed", 'step="price"',
        "step!=start", "revision=7", "revision=sha256:abab", "revision=abab", "revision!=8", "error=false", "attempt=1",
        "attempt<2", "duration=1ms", "duration>0.5ms", "duration<=1000us", "duration<1s and version>=2", "deployment=3",
        "flow=orders", "outcome=PROCESSED",
    ],
)  # fmt: skip
def test_what_a_hop_fits(text: str) -> None:
    assert parse_filter(text).fits(hop())


@pytest.mark.parametrize(
    "text",
    [
        "step=start", "step!=price", "step=price AND step=start", "revision=6", "revision=ababc", "error=true",
        "error!=false", "attempt>1", "duration>1ms", "kind=webhook", "status=200", "code=NO_PRICE",
    ],
)  # fmt: skip
def test_what_a_hop_does_not_fit(text: str) -> None:
    assert not parse_filter(text).fits(hop())


def test_failures_and_roots() -> None:
    failed = hop(outcome=HopOutcome.DEAD_LETTERED, code="NO_PRICE", attempt=3)
    assert parse_filter("code=NO_PRICE AND outcome=dead_lettered AND error=true AND attempt>=3").fits(failed)
    assert parse_filter("kind=webhook AND status>=200 AND step=gateway AND duration>=5ms").fits(root())
    assert parse_filter("outcome=failed").fits(root(status=504, code="NO_REPLY"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("step", "a term that is none"), ("step=price AND", "a term that is none"),
        ("colour=red", "asks for 'colour'"), ("step>price", "orders 'step' by >"),
        ("attempt=two", "no number at 'two'"), ("duration>5", "no duration at '5'"),
        ("error=perhaps", "neither true nor false"), ("step=price,,error=true", "an empty term"),
        ("x" * 1001, "longer"),
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as refused:
        parse_filter(text, "where")
    assert refused.value.field == "where"


@given(st.text(max_size=60))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        parse_filter(text).fits(hop())
