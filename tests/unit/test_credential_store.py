"""Credentials in a bucket: versions that are used stay, the others go; what two do at once, and what a kill leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.edge.key_ring import KEYS_VARIABLE, KeyRing, new_key
from headrace.model.errors import AlreadyExists, Conflict, InvalidInput, NotFound, WrongState
from services.orchestrator.credential_store import CredentialStore, etag_of
from tests.support.memory_bucket import MemoryBucket

pytest.importorskip("cryptography", reason="the environment is older than requirements.lock: run make setup")


class Kept:
    """A store on a bucket in memory, with a clock that is set."""

    def __init__(self) -> None:
        self.now = 100.0
        self.keys = [new_key()]
        self.bucket = MemoryBucket("credentials")
        self.store = self.with_keys(*self.keys)

    def with_keys(self, *keys: str) -> CredentialStore:
        return CredentialStore(self.bucket, "default", KeyRing({KEYS_VARIABLE: ",".join(keys)}), lambda: self.now)

    async def create(self, name: str = "shop", mark: str = "", expires_at: float = 0.0, **value: Any) -> Any:
        return await self.store.create(name, value or {"p": "one"}, "", expires_at, mark, dry=False)

    async def update(self, etag: str = "", **value: Any) -> Any:
        return await self.store.update("shop", value, lambda head: head, etag, "")

    async def versions(self) -> list[int]:
        return sorted(int(key.rpartition(".")[2]) for key in await self.bucket.keys("value.shop.*"))


async def test_versions_that_a_deployment_uses_stay_until_it_is_over() -> None:
    kept = Kept()
    await kept.create()
    first = await kept.store.freeze("shop", "orders", 1, "f")
    await kept.update(p="two")
    await kept.update(p="three")  # nobody used two
    assert (first.version, await kept.versions()) == (1, [1, 3])
    with pytest.raises(WrongState, match="is used by flows/orders/deployments/1"):
        await kept.store.delete("shop", "")
    await kept.store.release("orders", 2)
    assert await kept.versions() == [1, 3]
    await kept.store.release("orders", 1)
    assert await kept.versions() == [3]
    await kept.store.delete("shop", "")
    assert await kept.bucket.keys("value.>") == []
    with pytest.raises(NotFound):
        await kept.store.existing("shop")
    assert (await kept.create()).version == 4  # a number never means two values


async def test_what_is_gone_or_expired_is_not_taken_by_a_new_deployment() -> None:
    kept = Kept()
    await kept.create(expires_at=150.0)
    await kept.store.freeze("shop", "orders", 1, "f")
    kept.now = 150.0
    with pytest.raises(InvalidInput, match="f: 'shop' is a credential that has expired"):
        await kept.store.freeze("shop", "orders", 2, "f")
    with pytest.raises(InvalidInput, match="f: 'none' is not a credential"):
        await kept.store.freeze("none", "orders", 2, "f")
    assert [use.deployment for use in await kept.store.uses("shop")] == ["flows/orders/deployments/1"]


async def test_two_at_once_make_one_credential_and_no_lost_value() -> None:
    kept = Kept()
    made = await asyncio.gather(*(kept.create(p=str(number)) for number in range(4)), return_exceptions=True)
    assert sum(isinstance(outcome, AlreadyExists) for outcome in made) == 3
    head = await kept.store.existing("shop")
    changed = await asyncio.gather(*(kept.update(etag_of(head), p=str(n)) for n in range(4)), return_exceptions=True)
    assert sum(isinstance(outcome, Conflict) for outcome in changed) == 3
    newest = (await kept.store.existing("shop")).version
    assert newest in await kept.versions()
    assert (await kept.store.freeze("shop", "orders", 1, "f")).version == newest


async def test_a_repeat_of_a_call_under_its_mark_changes_nothing() -> None:
    kept = Kept()
    first = await kept.create(mark="m")
    assert await kept.create(mark="m") == first
    with pytest.raises(AlreadyExists):
        await kept.create(mark="n")


async def test_resealed_values_open_with_the_new_key_alone() -> None:
    kept, fresh = Kept(), new_key()
    await kept.create()
    await kept.store.freeze("shop", "orders", 1, "f")
    await kept.update(p="two")
    assert (await kept.with_keys(fresh, *kept.keys).reseal())[:2] == (2, 2)
    assert (await kept.with_keys(fresh, *kept.keys).reseal())[:2] == (0, 2)
    assert (await kept.with_keys(fresh).reseal())[:2] == (0, 2)
    with pytest.raises(WrongState, match="is sealed with key"):
        await kept.store.reseal()


async def test_a_value_that_a_killed_call_left_is_passed_over() -> None:
    kept = Kept()
    await kept.create()
    await kept.bucket.create("value.shop.2", b"left by a kill")
    assert (await kept.update(p="two")).version == 3
    assert await kept.versions() == [2, 3] or await kept.versions() == [3]
