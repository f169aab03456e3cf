"""What a push, a tag and a delete do to a component's record. Pure: record in, record out, or a refusal."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from msgspec.structs import replace

from headrace.model.errors import AlreadyExists, Conflict, NotFound, WrongState
from headrace.model.names import Reference, check_tag, is_semver
from services.registry.domain.component_record import LATEST, ComponentRecord, RevisionEntry

# Of how many calls a component keeps the marks: a repeat comes within moments.
KEPT_MARKS = 20
_SEMVER_PARTS = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:-([0-9a-z.-]+))?")


@dataclass(frozen=True, slots=True)
class PushDecision:
    """`record` is to be stored when `created`; `entry` is the revision that the content has."""

    record: ComponentRecord
    entry: RevisionEntry
    created: bool


def decide_push(
    record: ComponentRecord | None, *, name: str, title: str, digest: str, version: str, now: float
) -> PushDecision:
    """Equal content is the revision it was; new content gets the next number and moves `latest`.

    AlreadyExists when the version belongs to other bytes; Conflict while that revision is being deleted.
    """
    current = record or ComponentRecord(name=name, title=title, created_at=now)
    known = current.by_digest(digest)
    if known is not None:
        return PushDecision(current, check_not_deleting(name, known), created=False)
    if version and current.versions.get(version, digest) != digest:
        free = next_free_version(version, current.versions)
        raise AlreadyExists(
            f"version {version} of {name} exists with other content",
            reason="VERSION_TAKEN",
            next_step=f"Set `version: {free}` in component.yaml, the next free one, or leave `version` out",
            metadata={"version": version, "next_free_version": free},
        )
    entry = RevisionEntry(number=current.next_number, digest=digest, version=version, created_at=now)
    tags = {**current.tags, LATEST: entry.number}
    versions = dict(current.versions)
    if version:
        tags[version] = entry.number
        versions[version] = digest
    changed = replace(
        current,
        title=title,
        next_number=entry.number + 1,
        revisions=(*current.revisions, entry),
        tags=tags,
        versions=versions,
    )
    return PushDecision(changed, entry, created=True)


def next_free_version(version: str, taken: Collection[str]) -> str:
    """The next version nobody has: `1.2.3` → `1.2.4`, `1.2.3-rc.1` → `1.2.3-rc.2`, `1.2.3-beta` → `1.2.3-beta.1`."""
    match = _SEMVER_PARTS.match(version)
    assert match is not None, version
    major, minor, patch, pre = match.groups()
    if pre is None:
        prefix, number = f"{major}.{minor}.", int(patch)
    else:
        head, dot, last = pre.rpartition(".")
        numbered = last.isdigit()
        stem = f"{head}{dot}" if numbered else f"{pre}."
        prefix, number = f"{major}.{minor}.{patch}-{stem}", int(last) if numbered else 0
    while f"{prefix}{number}" in taken or f"{prefix}{number}" == version or (pre and number == 0):
        number += 1
    return f"{prefix}{number}"


def move_tag(record: ComponentRecord, number: int, tag: str) -> ComponentRecord:
    """Points a tag at a revision. A semantic version is a tag that never moves to other content."""
    check_tag("tag", tag)
    entry = check_not_deleting(record.name, record.by_number(number))
    versions = dict(record.versions)
    if is_semver(tag):
        if versions.get(tag, entry.digest) != entry.digest:
            raise AlreadyExists(
                f"version {tag} of {record.name} belongs to other content and never moves",
                reason="VERSION_TAKEN",
                next_step=f"Use {next_free_version(tag, versions)}, the next free one, or a word as tag",
            )
        versions[tag] = entry.digest
    return replace(record, tags={**record.tags, tag: number}, versions=versions)


def with_mark(record: ComponentRecord, mark: str) -> ComponentRecord:
    """With the mark of the call that changes it, where it has one."""
    return replace(record, requests=(*record.requests, mark)[-KEPT_MARKS:]) if mark else record


def check_etag(name: str, etag: str, present: str) -> None:
    """Conflict when an etag is given and is not the component's."""
    if etag and etag != present:
        raise Conflict(
            f"etag {etag!r} is not the one of components/{name} ({present!r}): it was changed meanwhile",
            reason="ETAG_MISMATCH",
            next_step=f"Read it again: GetComponent, name components/{name}",
            metadata={"component": name, "etag": present},
        )


def find_reference(record: ComponentRecord, reference: Reference) -> RevisionEntry:
    """The revision a reference means now; NotFound when it means none, Conflict while it is being deleted."""
    entry: RevisionEntry | None
    if reference.digest:
        entry = record.by_digest(reference.digest)
    else:
        number = reference.number or record.tags.get(reference.tag, 0)
        entry = next((one for one in record.revisions if one.number == number), None)
    if entry is None:
        known = ", ".join(sorted(record.tags)) or "none"
        raise NotFound(
            f"{reference}: no such revision of {record.name}",
            reason="REVISION_NOT_FOUND",
            next_step=f"Tags: {known}; revisions are listed by ListRevisions, parent components/{record.name}",
        )
    return check_not_deleting(record.name, entry)


def check_not_deleting(name: str, entry: RevisionEntry) -> RevisionEntry:
    """The entry, unless its delete has begun: whoever pins it then must take the pin back."""
    if entry.deleting:
        raise Conflict(
            f"components/{name}/revisions/{entry.number} is being deleted",
            reason="REVISION_BEING_DELETED",
            next_step="Try again in a moment, or use another revision",
        )
    return entry


def mark_deleting(record: ComponentRecord, number: int, *, deleting: bool) -> ComponentRecord:
    """Begins (or gives up) the delete of a revision."""
    entries = tuple(replace(one, deleting=deleting) if one.number == number else one for one in record.revisions)
    return replace(record, revisions=entries)


def remove_revision(record: ComponentRecord, number: int) -> ComponentRecord:
    """Without that revision and its tags. `latest` falls back to the newest left; versions stay taken."""
    remaining = tuple(one for one in record.revisions if one.number != number)
    tags = {tag: target for tag, target in record.tags.items() if target != number}
    if LATEST not in tags and remaining:
        tags[LATEST] = max(one.number for one in remaining)
    return replace(record, revisions=remaining, tags=tags)


def unused_revisions(record: ComponentRecord, pinned: Collection[str]) -> tuple[RevisionEntry, ...]:
    """Revisions that no digest in `pinned` is of and no tag names; never the newest. Oldest first."""
    tagged = set(record.tags.values())
    return tuple(
        entry
        for entry in record.revisions
        if entry.digest not in pinned and entry.number not in tagged and entry.number != record.latest_number
    )


def refuse_used(name: str, number: int) -> WrongState:
    """The error for purging what a tag names or what is the newest."""
    return WrongState(f"components/{name}/revisions/{number} is tagged or the newest", reason="REVISION_IN_USE")


def refuse_pinned(name: str, number: int, holders: Collection[str]) -> WrongState:
    """The error for deleting what is pinned."""
    shown = ", ".join(sorted(holders)[:10]) + (f" and {len(holders) - 10} more" if len(holders) > 10 else "")
    return WrongState(
        f"components/{name}/revisions/{number} is pinned by {shown}",
        reason="REVISION_PINNED",
        next_step="Stop or delete those first",
        metadata={"pinned_by": ",".join(sorted(holders)[:100])},
    )
