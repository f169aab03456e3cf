"""Laws of the registry's index under any order of pushes, tags and deletes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headrace.model.errors import AlreadyExists, Conflict, HeadraceError, NotFound
from headrace.model.names import Reference, is_semver, parse_reference
from services.registry.domain.component_record import (
    LATEST,
    ComponentRecord,
    RevisionEntry,
    decode_component,
    encode_component,
)
from services.registry.domain.pins import digest_of_pin, holder_of_pin, pins_of_digest
from services.registry.domain.revision_rules import (
    decide_push,
    find_reference,
    mark_deleting,
    move_tag,
    next_free_version,
    refuse_pinned,
    remove_revision,
)

DIGESTS = st.sampled_from(["sha256:" + letter * 64 for letter in "abcdef"])
VERSIONS = st.sampled_from(["", "1.0.0", "1.0.1", "2.0.0-rc.1"])
TAGS = st.sampled_from(["stable", "1.0.0", "9.9.9", "latest"])


class Index(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.record: ComponentRecord | None = None
        self.meaning: dict[str, str] = {}  # version → digest, as first seen
        self.numbers: dict[int, str] = {}  # every number ever given → digest

    @rule(digest=DIGESTS, version=VERSIONS)
    def push(self, digest: str, version: str) -> None:
        # content says its version: one digest never has two
        version = version and f"{version}" if digest < "sha256:d" else ""
        try:
            decision = decide_push(self.record, name="price", title="", digest=digest, version=version, now=1.0)
        except AlreadyExists:
            assert self.meaning[version] != digest
            return
        except Conflict:
            return
        assert decision.entry.digest == digest
        if decision.created:
            assert decision.entry.number not in self.numbers
            assert decision.record.tags[LATEST] == decision.entry.number
            self.numbers[decision.entry.number] = digest
            if version:
                self.meaning.setdefault(version, digest)
        else:
            assert decision.record == self.record
        self.record = decision.record

    @rule(number=st.integers(1, 8), tag=TAGS)
    def tag(self, number: int, tag: str) -> None:
        if self.record is None:
            return
        try:
            self.record = move_tag(self.record, number, tag)
        except (NotFound, Conflict, AlreadyExists):
            return
        if is_semver(tag):
            self.meaning.setdefault(tag, self.numbers[number])

    @rule(number=st.integers(1, 8), deleting=st.booleans())
    def mark(self, number: int, deleting: bool) -> None:
        if self.record is not None:
            self.record = mark_deleting(self.record, number, deleting=deleting)

    @rule(number=st.integers(1, 8))
    def remove(self, number: int) -> None:
        if self.record is not None:
            self.record = remove_revision(self.record, number)

    @invariant()
    def numbers_tags_and_versions_keep_their_meaning(self) -> None:
        record = self.record
        if record is None:
            return
        assert decode_component(encode_component(record)) == record
        live = {entry.number: entry.digest for entry in record.revisions}
        assert len(live) == len(record.revisions) == len(set(live.values()))
        assert live.items() <= self.numbers.items()
        assert set(record.tags.values()) <= set(live)
        assert (LATEST in record.tags) == bool(live)
        assert record.next_number == len(self.numbers) + 1
        assert record.versions == self.meaning
        for tag, number in record.tags.items():
            if is_semver(tag):
                assert live[number] == self.meaning[tag]
        for entry in record.revisions:
            for text in (f"price@{entry.number}", f"price@{entry.digest}"):
                reference = parse_reference("reference", text)
                if entry.deleting:
                    with pytest.raises(Conflict):
                        find_reference(record, reference)
                else:
                    assert find_reference(record, reference) == entry


TestIndex = Index.TestCase


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.sampled_from(["", "-rc.1", "-beta", "-a.b"]))
def test_the_next_free_version_is_free_and_valid(major: int, minor: int, patch: int, pre: str) -> None:
    version = f"{major}.{minor}.{patch}{pre}"
    taken: list[str] = [version]
    for _ in range(5):
        free = next_free_version(version, taken)
        assert free not in taken
        assert is_semver(free)
        taken.append(free)


def test_the_next_free_version_in_words() -> None:
    assert next_free_version("1.2.3", ["1.2.3", "1.2.4"]) == "1.2.5"
    assert next_free_version("1.2.3-rc.1", ["1.2.3-rc.1"]) == "1.2.3-rc.2"
    assert next_free_version("1.2.3-beta", ["1.2.3-beta"]) == "1.2.3-beta.1"


def test_latest_falls_back_to_the_newest_left() -> None:
    record: ComponentRecord | None = None
    for letter in "abc":
        record = decide_push(record, name="price", title="", digest="sha256:" + letter * 64, version="", now=0.0).record
    assert record is not None
    assert find_reference(remove_revision(record, 3), Reference("price", tag="latest")).number == 2
    empty = remove_revision(remove_revision(remove_revision(record, 3), 2), 1)
    with pytest.raises(NotFound, match="no such revision"):
        find_reference(empty, Reference("price", tag="latest"))
    again = decide_push(empty, name="price", title="", digest="sha256:" + "a" * 64, version="", now=0.0)
    assert again.entry.number == 4


def test_a_component_has_a_bound() -> None:
    entries = tuple(
        RevisionEntry(number=number, digest=f"sha256:{number:064}", version="", created_at=1.0)
        for number in range(20_000)
    )
    with pytest.raises(HeadraceError, match="more than one component may have"):
        encode_component(ComponentRecord("price", "", 1.0, revisions=entries))


def test_pins_are_named() -> None:
    digest = "sha256:" + "a" * 64
    key = "a" * 64 + ".orders.d1"
    assert digest_of_pin(key) == digest
    assert holder_of_pin(key) == "flows/orders/deployments/1"
    assert holder_of_pin(key.replace("d1", "v2")) == "flows/orders/versions/2"
    assert holder_of_pin(key.replace("d1", "odd")) == "flows/orders/odd"
    assert pins_of_digest(digest) == "a" * 64 + ".*.*"
    many = [f"flows/f{number:02}/deployments/1" for number in range(12)]
    assert "flows/f00/deployments/1" in str(refuse_pinned("price", 1, many))
    assert "and 2 more" in str(refuse_pinned("price", 1, many))
