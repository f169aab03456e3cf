"""What the registry does: push, resolve, tag, delete, read. Decided by `domain`, done here.

Order of a push: bundle object, bundle record, then the compare-and-set of the component, which is the moment
the revision exists. Order of a delete: mark, look for pins, the compare-and-set that removes the revision,
then record and object. Each push renews record and object between reading the component and changing it, and
a delete takes away only what it saw before its own change: so a delete that lags can never take what a later
push relies on. Whatever is cut off half way leaves at most an orphan (see `collector`) or a mark, which the
next delete or the collector resolves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import BinaryIO

from headrace.edge.bundle_reader import BundleContent
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.structured_log import get_logger
from headrace.model.errors import Conflict, Damaged, NotFound, Unavailable, WrongState
from headrace.model.names import Reference
from services.registry.bundle_store import BundleStore
from services.registry.component_store import ComponentStore, FoundComponent
from services.registry.domain import revision_rules
from services.registry.domain.component_record import BundleRecord, RevisionEntry
from services.registry.domain.pins import digest_of_pin, holder_of_pin, pins_of_digest

log = get_logger(__name__)

CHANGE_ATTEMPTS = 30
CHANGE_WAIT_S = 0.02


@dataclass(frozen=True, slots=True)
class RevisionView:
    """A revision as shown: index entry, bundle, and the resource names of who pins it."""

    component: str
    entry: RevisionEntry
    bundle: BundleRecord
    pinned_by: tuple[str, ...]


class Catalogue:
    """`clock` answers Unix seconds."""

    def __init__(
        self, components: ComponentStore, bundles: BundleStore, pins: KvBucket, clock: Callable[[], float]
    ) -> None:
        self.components = components
        self.bundles = bundles
        self._pins = pins
        self._clock = clock

    async def push(self, content: BundleContent, file: BinaryIO) -> tuple[RevisionView, bool]:
        """Stores a checked bundle; True when it made a new revision."""
        name = content.manifest.component
        for attempt in range(CHANGE_ATTEMPTS):
            found = await self.components.find(name)
            decision = self._decided(found, content)
            stored = await self.bundles.ensure(content.digest, file)
            bundle = BundleRecord(
                digest=content.digest,
                bundle_bytes=stored.info.size,
                content_bytes=content.content_bytes,
                manifest=content.manifest,
                lock_digest=content.lock_digest,
            )
            await self.components.put_bundle(bundle)
            if decision.created:
                try:
                    await self.components.save(decision.record, found.revision if found else None)
                except Conflict:
                    await asyncio.sleep(CHANGE_WAIT_S * (attempt + 1))
                    continue
                log.info("revision pushed", component=name, revision=decision.entry.number, digest=content.digest)
            holders = await self.holders(content.digest)
            return RevisionView(name, decision.entry, bundle, holders), decision.created
        raise _kept_changing(name)

    async def would_push(self, content: BundleContent, size: int) -> tuple[RevisionView, bool]:
        """What `push` would answer for a checked bundle of so many bytes; nothing is stored."""
        name = content.manifest.component
        found = await self.components.find(name)
        decision = self._decided(found, content)
        bundle = BundleRecord(content.digest, size, content.content_bytes, content.manifest, content.lock_digest)
        return RevisionView(name, decision.entry, bundle, await self.holders(content.digest)), decision.created

    def _decided(self, found: FoundComponent | None, content: BundleContent) -> revision_rules.PushDecision:
        return revision_rules.decide_push(
            found.record if found else None,
            name=content.manifest.component,
            title=content.manifest.title,
            digest=content.digest,
            version=content.manifest.version,
            now=self._clock(),
        )

    async def resolve(self, reference: Reference) -> RevisionView:
        """The revision that a reference means now."""
        found = await self.components.get(reference.component)
        return await self._view(found, revision_rules.find_reference(found.record, reference))

    async def revision(self, name: str, number: int) -> RevisionView:
        """One revision; Conflict (REVISION_BEING_DELETED) once its delete has begun."""
        found = await self.components.get(name)
        entry = revision_rules.check_not_deleting(name, found.record.by_number(number))
        return await self._view(found, entry)

    async def revisions(self, name: str, *, below: int, limit: int) -> tuple[list[RevisionView], bool]:
        """Newest first, with numbers below `below` (0: all); True when there are more."""
        found = await self.components.get(name)
        entries = [one for one in reversed(found.record.revisions) if not one.deleting]
        entries = [one for one in entries if not below or one.number < below]
        pins = await self._pins_by_digest()
        views = []
        for entry in entries[:limit]:
            bundle = await self._bundle(found, entry)
            views.append(RevisionView(name, entry, bundle, pins.get(entry.digest, ())))
        return views, len(entries) > limit

    async def tag(self, name: str, number: int, tag: str, etag: str = "", mark: str = "") -> RevisionView:
        """Points a tag at a revision; not again where the call with this mark has done so."""
        for attempt in range(CHANGE_ATTEMPTS):
            found = await self.components.get(name)
            if mark and mark in found.record.requests:
                return await self._view(found, found.record.by_number(number))
            revision_rules.check_etag(name, etag, found.etag)
            changed = revision_rules.move_tag(found.record, number, tag)
            if changed != found.record:
                try:
                    await self.components.save(revision_rules.with_mark(changed, mark), found.revision)
                except Conflict:
                    await asyncio.sleep(CHANGE_WAIT_S * (attempt + 1))
                    continue
                log.info("tag moved", component=name, revision=number, tag=tag)
            return await self._view(found, changed.by_number(number))
        raise _kept_changing(name)

    async def unused(self, name: str = "") -> list[RevisionView]:
        """Revisions of a component (of all, without a name) that a purge would delete."""
        found = [await self.components.get(name)] if name else await self.components.list()
        pins = await self._pins_by_digest()
        return [
            RevisionView(one.record.name, entry, await self._bundle(one, entry), ())
            for one in found
            for entry in revision_rules.unused_revisions(one.record, pins.keys())
            if not entry.deleting
        ]

    async def purge(self, name: str = "", only: Collection[str] = ()) -> list[RevisionView]:
        """Deletes what `unused` lists (with `only` just those names of it); answers what it deleted."""
        deleted: list[RevisionView] = []
        for view in await self.unused(name):
            if only and f"components/{view.component}/revisions/{view.entry.number}" not in only:
                continue
            try:
                await self.delete(view.component, view.entry.number, only_unused=True)
            except (WrongState, NotFound):
                continue  # pinned, tagged or deleted since it was listed
            deleted.append(view)
        return deleted

    async def delete(
        self, name: str, number: int, *, only_unused: bool = False, etag: str = "", mark: str = ""
    ) -> None:
        """Deletes a revision that nobody pins; WrongState names those who do.

        With `only_unused` one that a tag names, or that is the newest, is refused too.

        Whoever pins writes the pin first and then asks whether the revision is there; here it is marked first
        and then pins are looked for; the removal needs the very record that was marked. One of both sides
        always sees the other.
        """
        for attempt in range(CHANGE_ATTEMPTS):
            found = await self.components.get(name)
            if mark and mark in found.record.requests:
                return
            revision_rules.check_etag(name, etag, found.etag)
            entry = found.record.by_number(number)
            holders = await self.holders(entry.digest)
            refusal = revision_rules.refuse_pinned(name, number, holders) if holders else None
            if refusal is None and only_unused and entry not in revision_rules.unused_revisions(found.record, ()):
                refusal = revision_rules.refuse_used(name, number)
            try:
                if refusal is not None:
                    if entry.deleting:
                        unmarked = revision_rules.mark_deleting(found.record, number, deleting=False)
                        await self.components.save(unmarked, found.revision)
                    raise refusal
                if not entry.deleting:
                    marked = revision_rules.mark_deleting(found.record, number, deleting=True)
                    saved = await self.components.save(marked, found.revision)
                    etag = str(saved) if etag else ""
                    continue  # reads the marked record, then looks for pins again
                stored = await self.bundles.find(entry.digest)
                bundle = await self.components.find_bundle(entry.digest)
                left = revision_rules.remove_revision(found.record, number)
                await self.components.save(revision_rules.with_mark(left, mark), found.revision)
            except Conflict:
                await asyncio.sleep(CHANGE_WAIT_S * (attempt + 1))
                continue
            log.info("revision deleted", component=name, revision=number, digest=entry.digest)
            try:
                if bundle is not None:
                    await self.components.delete_bundle(entry.digest, bundle[1])
                if stored is not None:
                    await self.bundles.delete(stored)
            except Unavailable as error:  # gone for everybody; what is left is an orphan
                log.warning("deleted bundle left for the collector", digest=entry.digest, error=error.message)
            return
        raise _kept_changing(name)

    async def open_bundle(self, digest: str) -> BinaryIO:
        """A temporary file with the checked bytes of a bundle; the caller closes it. NotFound, or Damaged."""
        stored = await self.bundles.find(digest)
        if stored is None:
            if await self.components.find_bundle(digest) is not None:
                raise Damaged(
                    f"bundle {digest} is gone from the object store",
                    reason="BUNDLE_DAMAGED",
                    next_step="Push the same folder again",
                )
            raise NotFound(
                f"bundle {digest}: no such bundle",
                reason="BUNDLE_NOT_FOUND",
                next_step="Take a digest from GetRevision or ResolveReference",
            )
        file: BinaryIO = TemporaryFile()  # type: ignore[assignment]  # noqa: SIM115 - handed to the caller
        try:
            await self.bundles.fetch(stored, digest, file)
        except BaseException:
            file.close()
            raise
        return file

    async def holders(self, digest: str) -> tuple[str, ...]:
        """Resource names of the deployments and versions that pin a digest."""
        return _names(await self._pins.keys(pins_of_digest(digest)))

    async def _pins_by_digest(self) -> dict[str, tuple[str, ...]]:
        grouped: dict[str, list[str]] = {}
        for key in await self._pins.keys():
            grouped.setdefault(digest_of_pin(key), []).append(key)
        return {digest: _names(keys) for digest, keys in grouped.items()}

    async def _view(self, found: FoundComponent, entry: RevisionEntry) -> RevisionView:
        bundle = await self._bundle(found, entry)
        return RevisionView(found.record.name, entry, bundle, await self.holders(entry.digest))

    async def _bundle(self, found: FoundComponent, entry: RevisionEntry) -> BundleRecord:
        bundle = await self.components.find_bundle(entry.digest)
        if bundle is None:
            # Deleted between the two reads, or lost.
            raise Damaged(
                f"components/{found.record.name}/revisions/{entry.number}: its bundle record is gone",
                reason="BUNDLE_DAMAGED",
                next_step="Push the same folder again",
            )
        return bundle[0]


def _names(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(holder_of_pin(key) for key in keys))


def _kept_changing(name: str) -> Conflict:
    return Conflict(f"components/{name} kept changing", reason="REVISION_CHANGED", next_step="Try again in a moment")
