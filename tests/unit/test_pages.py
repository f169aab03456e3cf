"""Pages of lists and the tokens that go on with them."""

from __future__ import annotations

import pytest
from google.protobuf import wrappers_pb2
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.errors import InvalidInput
from headrace.model.opaque_tokens import make_token, read_token
from headrace.model.pages import MAX_ANSWER_BYTES, Page, bounded

KIND = "the list of flows"
words = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n"), max_size=40)


@given(kind=words, parts=st.lists(words, min_size=1, max_size=3), other=words)
def test_a_token_comes_back_whole_and_only_to_its_kind(kind: str, parts: list[str], other: str) -> None:
    token = make_token(kind, *parts)
    assert read_token("page_token", kind, token, len(parts)) == tuple(parts)
    if other != kind:
        with pytest.raises(InvalidInput) as caught:
            read_token("page_token", other, token, len(parts))
        assert caught.value.reason == "BAD_TOKEN"


@given(text=st.text(max_size=60))
def test_what_was_never_given_out_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        read_token("page_token", KIND, text, 1)


@given(token=st.just(make_token(KIND, "orders")), at=st.integers(0, 20), sign=st.sampled_from("AZaz09-_"))
def test_an_altered_token_is_refused(token: str, at: int, sign: str) -> None:
    altered = token[:at] + sign + token[at + 1 :]
    if altered[: len(token)] != token:
        with pytest.raises(InvalidInput):
            read_token("page_token", KIND, altered, 1)


@given(
    names=st.sets(st.from_regex(r"[a-z]{1,3}", fullmatch=True), max_size=40),
    size=st.integers(0, 7),
    changes=st.lists(st.tuples(st.booleans(), st.from_regex(r"[a-z]{1,3}", fullmatch=True)), max_size=20),
)
def test_what_was_there_all_the_time_is_listed_once_whatever_comes_and_goes(
    names: set[str], size: int, changes: list[tuple[bool, str]]
) -> None:
    present, lasting = set(names), set(names)
    listed: list[str] = []
    token, pending = "", list(changes)
    while True:
        page = Page.asked(KIND, size, token)
        shown, token = page.take(sorted(present), str, lambda name: wrappers_pb2.StringValue(value=name))
        assert len(shown) <= page.size
        listed += [item.value for item in shown]
        if not token:
            break
        if pending:
            made, name = pending.pop()
            lasting.discard(name)
            present.add(name) if made else present.discard(name)
    assert len(listed) == len(set(listed))
    assert lasting <= set(listed)


def test_sizes() -> None:
    assert Page.asked(KIND, 0, "").size == 100
    assert Page.asked(KIND, 5000, "").size == 1000
    assert Page.asked(KIND, 5000, "", default=50, most=500).size == 500
    with pytest.raises(InvalidInput, match="page_size: -1 is negative"):
        Page.asked(KIND, -1, "")


def test_a_number_is_asked_for_as_one() -> None:
    assert Page.asked(KIND, 1, make_token(KIND, "17")).number == 17
    with pytest.raises(InvalidInput):
        _ = Page.asked(KIND, 1, make_token(KIND, "x")).number


def test_a_page_ends_before_it_is_too_large_for_a_client_and_holds_at_least_one() -> None:
    large = wrappers_pb2.BytesValue(value=b"x" * 1_000_000)
    assert len(bounded([large] * 10)) == 3
    assert len(bounded([wrappers_pb2.BytesValue(value=b"x" * (MAX_ANSWER_BYTES + 1))] * 2)) == 1
