"""A JetStream KV bucket: values are bytes, every change can be a compare-and-set on the key's revision."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import KeyValueConfig
from nats.js.kv import KeyValue

from headrace.document_ports import Entry as Entry
from headrace.edge.replication import copies
from headrace.model.errors import Conflict, Unavailable

TIMEOUT_S = 5.0
WRONG_LAST_SEQUENCE = 10071
# How long the broker keeps the consumer of a watch that ended (nats-py leaves it behind, by default for 5 min).
ENDED_WATCH_S = 5.0


class KvBucket:
    """All waits are limited; a broker that does not answer raises Unavailable."""

    def __init__(
        self, name: str, store: KeyValue, connection: Client, guard: Callable[[], None] = lambda: None
    ) -> None:
        """`guard` is called before each change and raises where this process may not change anything."""
        self.name = name
        self._store = store
        self._connection = connection
        self._manager = connection.jetstream(timeout=TIMEOUT_S)
        self._guard = guard

    @classmethod
    async def open(
        cls,
        connection: Client,
        name: str,
        *,
        ttl_s: float = 0,
        history: int = 1,
        replicas: int = 0,
        guard: Callable[[], None] = lambda: None,
    ) -> KvBucket:
        """Creates the bucket if it is not there; `ttl_s` is for the whole bucket, 0 for none, `replicas` 0 for as many
        as `headrace.edge.replication` says."""
        stream = connection.jetstream(timeout=TIMEOUT_S)
        try:
            try:
                return cls(name, await stream.key_value(name), connection, guard)
            except nats.js.errors.NotFoundError:
                number = replicas or copies(connection)
                config = KeyValueConfig(bucket=name, ttl=ttl_s or None, history=history, replicas=number)
                return cls(name, await stream.create_key_value(config), connection, guard)
        except (nats.errors.Error, TimeoutError) as error:
            raise _unavailable(name, error) from error

    @staticmethod
    async def exists(connection: Client, name: str) -> bool:
        """Whether there is a bucket of that name."""
        try:
            await connection.jetstream(timeout=TIMEOUT_S).key_value(name)
        except nats.js.errors.NotFoundError:
            return False
        except (nats.errors.Error, TimeoutError) as error:
            raise _unavailable(name, error) from error
        return True

    async def get(self, key: str) -> Entry | None:
        """The newest value, or None."""
        try:
            found = await self._store.get(key)
        except nats.js.errors.KeyNotFoundError:
            return None
        except (nats.errors.Error, TimeoutError) as error:
            raise _unavailable(self.name, error) from error
        return Entry(key, found.value or b"", found.revision or 0)

    async def create(self, key: str, value: bytes) -> int:
        """Writes a key that must not exist; Conflict if it does. Answers the revision."""
        self._guard()
        try:
            return await self._store.create(key, value)
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise Conflict(f"{key} exists already", reason="KEY_EXISTS") from error
        except (nats.errors.Error, TimeoutError) as error:
            raise _unavailable(self.name, error) from error

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Compare-and-set; Conflict if the key's revision is another. Answers the new revision."""
        self._guard()
        try:
            return await self._store.update(key, value, last=revision)
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise Conflict(f"{key} was changed meanwhile", reason="REVISION_CHANGED") from error
        except (nats.errors.Error, TimeoutError) as error:
            raise _unavailable(self.name, error) from error

    async def put(self, key: str, value: bytes) -> int:
        """Writes whatever was there."""
        self._guard()
        try:
            return await self._store.put(key, value)
        except (nats.errors.Error, TimeoutError) as error:
            raise _unavailable(self.name, error) from error

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Deletes a key (with compare-and-set where a revision is given); absent is fine."""
        self._guard()
        try:
            await self._store.delete(key, last=revision)
        except nats.js.errors.BadRequestError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise _unavailable(self.name, error) from error
            raise Conflict(f"{key} was changed meanwhile", reason="REVISION_CHANGED") from error
        except (nats.errors.Error, TimeoutError) as error:
            raise _unavailable(self.name, error) from error

    async def purge(self, key: str) -> None:
        """Deletes a key with its history."""
        self._guard()
        try:
            await self._store.purge(key)
        except (nats.errors.Error, TimeoutError) as error:
            raise _unavailable(self.name, error) from error

    async def keys(self, pattern: str = ">") -> list[str]:
        """Live keys that match a subject pattern, sorted; for example `flow.*`."""
        return [entry.key for entry in await self.entries(pattern)]

    async def entries(self, pattern: str = ">") -> list[Entry]:
        """Live entries that match a subject pattern, sorted by key, read in one pass."""
        found: dict[str, Entry] = {}
        try:
            async with asyncio.timeout(TIMEOUT_S):
                watch = self.watch(pattern)
                async with contextlib.aclosing(watch):
                    async for entry in watch:
                        if entry is None:
                            break
                        found[entry.key] = entry
        except (nats.errors.Error, TimeoutError) as error:
            raise _unavailable(self.name, error) from error
        return [found[key] for key in sorted(found) if found[key].value is not None]

    async def state(self) -> tuple[str, int]:
        """Which bucket it is (another one where it was lost and made anew), and its newest revision."""
        try:
            status = await self._store.status()
        except (nats.errors.Error, TimeoutError) as error:
            raise _unavailable(self.name, error) from error
        info = status.stream_info
        return info.created.isoformat() if info.created else "", int(info.state.last_seq)

    async def next_change(self, pattern: str, after: int) -> Entry | None:
        """The first key that matches and whose newest change (a delete too: value None) is above a revision."""
        stream, prefix = f"KV_{self.name}", f"$KV.{self.name}."
        try:
            found = await self._manager.get_msg(stream, seq=after + 1, subject=prefix + pattern, next=True)
        except nats.js.errors.NotFoundError:
            return None
        except (nats.errors.Error, TimeoutError) as error:
            raise _unavailable(self.name, error) from error
        gone = (found.headers or {}).get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in (
            found.headers or {}
        )
        key = (found.subject or "").removeprefix(prefix)
        return Entry(key, None if gone else (found.data or b""), found.seq or 0)

    @contextlib.asynccontextmanager
    async def told(self, pattern: str, tell: Callable[[], None]) -> AsyncIterator[None]:
        """Calls `tell` at each write of a key that matches, about when it is stored: a hint to look, no more."""

        async def heard(_message: object) -> None:
            tell()

        subscription = await self._connection.subscribe(f"$KV.{self.name}.{pattern}", cb=heard)
        try:
            yield
        finally:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def newest(self) -> int:
        """The revision of the newest write or delete of any key; one request, however many keys there are."""
        try:
            status = await self._store.status()
        except (nats.errors.Error, TimeoutError) as error:
            raise _unavailable(self.name, error) from error
        return int(status.stream_info.state.last_seq)

    async def watch(self, pattern: str = ">") -> AsyncGenerator[Entry | None, None]:
        """First the present entries, then None once, then each change. Ends when cancelled.

        A watch may miss changes when the broker restarts: whoever watches also re-reads now and then.
        """
        watcher = await self._store.watch(pattern, inactive_threshold=ENDED_WATCH_S)
        received = late = 0
        try:
            while True:
                try:
                    update = await watcher.updates(timeout=5.0)  # type: ignore[no-untyped-call]
                except (TimeoutError, nats.errors.TimeoutError):
                    continue
                if update is None:
                    late = 0 if received else await _delivered(watcher)
                    if not late:
                        yield None
                    continue
                gone = update.operation in ("DEL", "PURGE")
                yield Entry(update.key, None if gone else (update.value or b""), update.revision or 0)
                received += 1
                if received == late:
                    yield None
        finally:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await asyncio.shield(watcher.stop())  # type: ignore[no-untyped-call]


async def _delivered(watcher: KeyValue.KeyWatcher) -> int:
    """How many entries there are at the beginning of a watch that says there are none: nats-py asks the broker what
    is left to be delivered, and takes nothing left and nothing here for nothing at all, though it may be on its way."""
    assert watcher._sub is not None
    info = await watcher._sub.consumer_info()
    return int(info.delivered.consumer_seq if info.delivered else 0) + int(info.num_pending or 0)


def _unavailable(bucket: str, error: BaseException) -> Unavailable:
    return Unavailable(
        f"the broker did not answer for bucket {bucket}: {error!r}",
        reason="BROKER_UNREACHABLE",
        next_step="Try again; check that the NATS server runs",
    )
