"""Keys and slots: what is a key, and where it leads."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.errors import InvalidInput
from headrace.model.slots import MAX_SLOTS, UNKEYED, KeySource, key_of, keying, parse_key, slot_of

# Published FNV-1a-32 values.
VECTORS = {"": 0x811C9DC5, "a": 0xE40C292C, "b": 0xE70C2DE5, "foobar": 0xBF9CF968}


@pytest.mark.parametrize(("text", "value"), VECTORS.items())
def test_the_hash_is_fnv_1a_32(text: str, value: int) -> None:
    assert [slot_of(text, slots) for slots in (2, 8, 61, 64)] == [value % slots for slots in (2, 8, 61, 64)]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("header:Customer-Id", KeySource("customer-id")),
        ("body:/customer/id", KeySource("", ("customer", "id"))),
        ("body:/a~1b/~01/0", KeySource("", ("a/b", "~1", "0"))),
        ("body:/", KeySource("", ("",))),
    ],
)
def test_sources(text: str, source: KeySource) -> None:
    assert parse_key(text) == source


@pytest.mark.parametrize(
    "text",
    ["", "customer", "header:", "header:two words", "header:" + "x" * 129, "body:", "body:customer", "body:/a~2",
     "Header:x"],
)  # fmt: skip
def test_what_is_no_key_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput, match="key: ") as caught:
        parse_key(text)
    assert caught.value.reason == "BAD_KEY"
    assert "header:NAME" in str(caught.value)


@pytest.mark.parametrize(
    ("pointer", "body", "key"),
    [
        ("/id", b'{"id": "c-7"}', "c-7"),
        ("/id", b'{"id": 7}', "7"),
        ("/id", b'{"id": 7.0}', "7"),
        ("/id", b'{"id": 7.5}', "7.5"),
        ("/id", b'{"id": true}', "true"),
        ("/lines/1/sku", b'{"lines": [{"sku": "a"}, {"sku": "b"}]}', "b"),
        ("/a~1b", b'{"a/b": "x"}', "x"),
        ("/0", b'["x"]', "x"),
        ("/0", b'{"0": "x"}', "x"),
    ],
)
def test_a_key_in_the_body(pointer: str, body: bytes, key: str) -> None:
    assert key_of(parse_key(f"body:{pointer}"), {}, body) == key


@pytest.mark.parametrize(
    "body",
    [b"", b"not json", b"{}", b'{"id": null}', b'{"id": ""}', b'{"id": {}}', b'{"id": [1]}', b"[1]", b'"id"', b"\xff",
     b'{"id":' * 5_000, b"[" * 100_000],
)  # fmt: skip
def test_no_key_in_the_body(body: bytes) -> None:
    assert key_of(parse_key("body:/id"), {}, body) is None


def test_a_key_in_a_header_is_found_in_any_case() -> None:
    source = parse_key("header:Customer")
    assert key_of(source, {"customer": "c-7"}, b"") == "c-7"
    assert key_of(source, {"CUSTOMER": "c-7"}, b"") == "c-7"
    assert key_of(source, {"customer": ""}, b"") is None
    assert key_of(source, {}, b"") is None


def test_without_a_value_the_message_id_is_the_key() -> None:
    by_header = keying("header:customer", 8)
    lost = by_header.place({}, b"", "id-1")
    assert (lost.slot, lost.key, lost.keyless) == (slot_of("id-1", 8), "id-1", True)
    found = by_header.place({"customer": "c"}, b"", "id-1")
    assert (found.slot, found.key, found.keyless) == (slot_of("c", 8), "c", False)
    by_id = keying("", 8).place({"customer": "c"}, b"", "id-1")
    assert (by_id.slot, by_id.key, by_id.keyless) == (slot_of("id-1", 8), "id-1", False)
    assert UNKEYED.place({}, b"", "id-1").slot == 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.lists(st.text(max_size=4), min_size=1, max_size=3), st.integers(1, MAX_SLOTS))
def test_no_body_breaks_a_sender(value: object, tokens: list[str], slots: int) -> None:
    escaped = [token.replace("~", "~0").replace("/", "~1") for token in tokens]
    placement = keying("body:/" + "/".join(escaped), slots).place({}, json.dumps(value).encode(), "id")
    assert 0 <= placement.slot < slots
    assert placement.slot == slot_of(placement.key, slots)


@given(st.text(), st.integers(1, MAX_SLOTS))
def test_a_key_has_one_slot(key: str, slots: int) -> None:
    assert slot_of(key, slots) == slot_of(key, slots) < slots


def test_the_longest_key_is_hashed_in_no_time() -> None:
    assert slot_of("k" * 1024 + "a", 64) == slot_of("k" * 1024 + "b" * 500_000, 64)
