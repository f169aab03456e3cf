"""The documents the registry keeps in KV.

`ComponentRecord` (key `component.<name>`) is the index of a component: each change of it is one
compare-and-set, so that it is the moment at which a push, a tag or a delete happens. `BundleRecord` (key
`digest.<hex>`) says what a bundle holds; it follows from the bundle's content alone.
"""

from __future__ import annotations

import msgspec

from headrace.model.errors import Exhausted, InvalidInput, NotFound
from headrace.model.manifest import Manifest

LATEST = "latest"
MAX_RECORD_BYTES = 768 * 1024
"""Well below the broker's message limit of 1 MiB; about 3 000 revisions."""


class RevisionEntry(msgspec.Struct, frozen=True):
    """One revision in the index. `deleting`: somebody is looking for pins before removing it."""

    number: int
    digest: str
    version: str
    created_at: float
    deleting: bool = False


class ComponentRecord(msgspec.Struct, frozen=True):
    """`versions` maps each semantic version ever given to its digest, also after a delete: it stays taken."""

    name: str
    title: str
    created_at: float
    next_number: int = 1
    revisions: tuple[RevisionEntry, ...] = ()
    tags: dict[str, int] = {}
    versions: dict[str, str] = {}
    # Marks of the newest calls with a request id that changed it: a repeat sees here that it was done.
    requests: tuple[str, ...] = ()

    def by_number(self, number: int) -> RevisionEntry:
        """NotFound when there is none (any more)."""
        for entry in self.revisions:
            if entry.number == number:
                return entry
        raise NotFound(
            f"components/{self.name}/revisions/{number}: no such revision",
            reason="REVISION_NOT_FOUND",
            next_step=f"List them with ListRevisions, parent components/{self.name}",
        )

    def by_digest(self, digest: str) -> RevisionEntry | None:
        for entry in self.revisions:
            if entry.digest == digest:
                return entry
        return None

    @property
    def latest_number(self) -> int:
        """Number of the newest revision, 0 without any."""
        return max((entry.number for entry in self.revisions), default=0)


class BundleRecord(msgspec.Struct, frozen=True):
    """What a bundle holds; sizes in bytes. `lock_digest` is empty when it has no lock file."""

    digest: str
    bundle_bytes: int
    content_bytes: int
    manifest: Manifest
    lock_digest: str


def encode_component(record: ComponentRecord) -> bytes:
    """Bytes to store; Exhausted when the component has too many revisions."""
    raw = msgspec.json.encode(record)
    if len(raw) > MAX_RECORD_BYTES:
        raise Exhausted(
            f"components/{record.name}: {len(record.revisions)} revisions and {len(record.versions)} versions,"
            " more than one component may have",
            reason="TOO_MANY_REVISIONS",
            next_step="Delete revisions that nobody pins, or use another component name",
        )
    return raw


def decode_component(raw: bytes) -> ComponentRecord:
    return msgspec.json.decode(raw, type=ComponentRecord)


def encode_bundle(record: BundleRecord) -> bytes:
    """Bytes to store; InvalidInput when the manifest with its schemas is too large for the broker."""
    raw = msgspec.json.encode(record)
    if len(raw) > MAX_RECORD_BYTES:
        raise InvalidInput(
            f"manifest of {record.manifest.component}: {len(raw):,} bytes with its schemas,"
            f" more than {MAX_RECORD_BYTES:,}",
            reason="MANIFEST_TOO_LARGE",
            next_step="Make the schemas smaller",
        )
    return raw


def decode_bundle(raw: bytes) -> BundleRecord:
    return msgspec.json.decode(raw, type=BundleRecord)
