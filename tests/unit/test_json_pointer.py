"""One place of a document is changed, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.errors import InvalidInput
from headrace.model.json_pointer import set_at

names = st.sampled_from(["", "a", "a/b", "~", "0", "-"])
documents = st.recursive(
    st.integers() | st.text(max_size=3) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def places(document: Any, way: str = "") -> list[str]:
    found = [way]
    items = (
        document.items() if isinstance(document, dict) else enumerate(document if isinstance(document, list) else [])
    )
    for key, value in items:
        found += places(value, f"{way}/{str(key).replace('~', '~0').replace('/', '~1')}")
    return found


@given(documents, st.data())
def test_every_place_that_is_there_can_be_changed_and_only_it(document: Any, data: st.DataObject) -> None:
    pointer = data.draw(st.sampled_from(places(document)))
    before = {place: copy.deepcopy(document) for place in places(document)}
    changed = set_at(copy.deepcopy(document), pointer, "new value")
    assert set_at(copy.deepcopy(changed), pointer, "new value") == changed
    kept = [place for place in before if not (place + "/").startswith(pointer + "/") and not pointer.startswith(place)]
    assert set(kept) <= set(places(changed))
    assert pointer in places(changed)


def test_members_and_items_are_made() -> None:
    assert set_at({"a": {}}, "/a/b", 1) == {"a": {"b": 1}}
    assert set_at({"a": [1]}, "/a/-", 2) == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("document", "pointer"),
    [({}, "a"), ({}, "/a/b"), ([1], "/1"), ([1], "/01"), ([1], "/x"), (7, "/a"), ({"a": 1}, "/a/b"), ([], "/-/a")],
)
def test_what_leads_nowhere_is_named(document: Any, pointer: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        set_at(document, pointer, 1)
    assert pointer in caught.value.message
