"""Clears up after registries that were killed half way: unfinished deletes, bundles that no revision has.

Harmless left-overs, so it is in no hurry: what is younger than ORPHAN_AGE_S may belong to a push in progress.
"""

from __future__ import annotations

import asyncio
import time

from headrace.edge.structured_log import get_logger
from headrace.model.errors import HeadraceError, WrongState
from services.registry.catalogue import Catalogue

log = get_logger(__name__)

UNFINISHED_EVERY_S = 60.0
ORPHANS_EVERY_S = 3600.0
ORPHAN_AGE_S = 3600.0


class Collector:
    """Owned by the app's TaskGroup; ends when cancelled."""

    def __init__(self, catalogue: Catalogue, *, orphan_age_s: float = ORPHAN_AGE_S) -> None:
        self._catalogue = catalogue
        self._orphan_age_s = orphan_age_s
        self._suspects: dict[str, int] = {}

    async def run(self) -> None:
        """Looks at once, then now and then; a broker that does not answer only delays it."""
        orphans_at = time.monotonic()
        while True:
            try:
                await self.finish_deletes()
                if time.monotonic() >= orphans_at:
                    orphans_at = time.monotonic() + ORPHANS_EVERY_S
                    await self.drop_orphans()
            except HeadraceError as error:
                log.warning("collector will try again", error=str(error))
            await asyncio.sleep(UNFINISHED_EVERY_S)

    async def finish_deletes(self) -> int:
        """Finishes deletes whose registry died, or takes the mark back where a pin was set; answers how many."""
        done = 0
        for found in await self._catalogue.components.list():
            for entry in found.record.revisions:
                if not entry.deleting:
                    continue
                done += 1
                try:
                    await self._catalogue.delete(found.record.name, entry.number)
                except WrongState as pinned:
                    log.info("delete given up", component=found.record.name, revision=entry.number, cause=str(pinned))
        return done

    async def drop_orphans(self) -> int:
        """Removes old bundles and records that no revision has, and old chunks of uploads that were cut off.

        What is a candidate is read before the components: a push that renewed it since is either seen there,
        or its renewal makes the delete here fail. A record says no age: it goes when it was a candidate,
        unchanged, the last time already.
        """
        components, bundles = self._catalogue.components, self._catalogue.bundles
        objects = [one for one in await bundles.list_objects() if time.time() - one.stored_at > self._orphan_age_s]
        records = await components.list_bundles()
        known = {entry.digest for found in await components.list() for entry in found.record.revisions}
        dropped = 0
        for stored in objects:
            if f"sha256:{stored.info.name}" not in known and await bundles.delete(stored):
                dropped += 1
        suspects = {digest: revision for digest, revision in records.items() if digest not in known}
        for digest, revision in suspects.items():
            if self._suspects.get(digest) == revision and await components.delete_bundle(digest, revision):
                dropped += 1
        self._suspects = suspects
        dropped += await bundles.drop_chunks_without_object(self._orphan_age_s)
        if dropped:
            log.info("orphans removed", count=dropped)
        return dropped
