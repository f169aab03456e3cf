"""Component and bundle records in KV; every change of a component is a compare-and-set."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.edge.kv_bucket import KvBucket
from headrace.edge.resumable_watch import ResumableWatch
from headrace.model.errors import Conflict, NotFound
from services.registry.domain.component_record import (
    BundleRecord,
    ComponentRecord,
    decode_bundle,
    decode_component,
    encode_bundle,
    encode_component,
)


@dataclass(frozen=True, slots=True)
class FoundComponent:
    """A record and the KV revision that the next change must name."""

    record: ComponentRecord
    revision: int

    @property
    def etag(self) -> str:
        """Changes with every change of the component."""
        return str(self.revision)


class ComponentStore:
    """`component.<name>` and `digest.<hex>` in one bucket."""

    def __init__(self, bucket: KvBucket) -> None:
        self._bucket = bucket

    async def find(self, name: str) -> FoundComponent | None:
        entry = await self._bucket.get(f"component.{name}")
        if entry is None or entry.value is None:
            return None
        return FoundComponent(decode_component(entry.value), entry.revision)

    async def get(self, name: str) -> FoundComponent:
        """Like find; NotFound when there is none."""
        found = await self.find(name)
        if found is None:
            raise NotFound(
                f"components/{name}: no such component",
                reason="COMPONENT_NOT_FOUND",
                next_step="Push it: headrace component push FOLDER",
            )
        return found

    async def list(self) -> list[FoundComponent]:
        """All components, by name."""
        entries = await self._bucket.entries("component.*")
        return [FoundComponent(decode_component(one.value), one.revision) for one in entries if one.value]

    def watch(self) -> ResumableWatch:
        """Of the components' records."""
        return ResumableWatch(self._bucket, "component.*", "a watch of components")

    async def save(self, record: ComponentRecord, revision: int | None) -> int:
        """Stores the record if nobody changed it since `revision` (None: if there is none); else Conflict."""
        raw = encode_component(record)
        if revision is None:
            return await self._bucket.create(f"component.{record.name}", raw)
        return await self._bucket.update(f"component.{record.name}", raw, revision)

    async def find_bundle(self, digest: str) -> tuple[BundleRecord, int] | None:
        """What a bundle holds, and the KV revision to delete it by."""
        entry = await self._bucket.get(_bundle_key(digest))
        if entry is None or entry.value is None:
            return None
        return decode_bundle(entry.value), entry.revision

    async def list_bundles(self) -> dict[str, int]:
        """Digest of every bundle record, and the KV revision to delete it by."""
        entries = await self._bucket.entries("digest.*")
        return {"sha256:" + one.key.removeprefix("digest."): one.revision for one in entries}

    async def put_bundle(self, record: BundleRecord) -> None:
        """Writes the record anew, which keeps a delete that began earlier from taking it away."""
        await self._bucket.put(_bundle_key(record.digest), encode_bundle(record))

    async def delete_bundle(self, digest: str, revision: int) -> bool:
        """Deletes the record; False when somebody wrote it since `revision`."""
        try:
            await self._bucket.delete(_bundle_key(digest), revision)
        except Conflict:
            return False
        return True


def _bundle_key(digest: str) -> str:
    return f"digest.{digest.removeprefix('sha256:')}"
