"""Credentials in KV: heads in clear, values sealed, and which deployment uses which version.

A deployment marks the version that it will use before its plan names it, and looks then whether the value is there. Who
takes a value away looks for marks, in the same process and under one lock (only the leader writes), so neither can miss
the other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace.document_ports import Bucket
from headrace.edge.key_ring import KeyRing
from headrace.model.credential import (
    CredentialHead,
    CredentialRef,
    SealedValue,
    bound_to,
    check_value,
    credential_key,
    credential_use_key,
    sealed_key,
)
from headrace.model.errors import AlreadyExists, Conflict, InvalidInput, NotFound, Unavailable, WrongState

KEPT_MARKS = 20
MOST_TRIES = 8


@dataclass(frozen=True, slots=True)
class CredentialUse:
    """A deployment (`d3`) of a flow that uses a version."""

    flow: str
    holder: str
    version: int

    @property
    def deployment(self) -> str:
        """`flows/orders/deployments/3`."""
        return f"flows/{self.flow}/deployments/{self.holder.removeprefix('d')}"


class CredentialStore:
    """Of one workspace. Every change of a head is a compare-and-set."""

    def __init__(self, bucket: Bucket, workspace: str, ring: KeyRing, now: Callable[[], float]) -> None:
        self._bucket = bucket
        self._workspace = workspace
        self._ring = ring
        self._now = now
        self._taking_away = asyncio.Lock()

    # Reading.

    async def head(self, name: str) -> CredentialHead | None:
        """None where there is none."""
        found = await self._found(name)
        return found[0] if found is not None else None

    async def existing(self, name: str) -> CredentialHead:
        """NotFound where there is none."""
        return (await self._existing(name))[0]

    async def heads(self) -> list[CredentialHead]:
        """All of them, by name."""
        entries = await self._bucket.entries("head.*")
        return [msgspec.msgpack.decode(entry.value or b"", type=CredentialHead) for entry in entries]

    async def uses(self, name: str) -> list[CredentialUse]:
        """Who uses which version."""
        keys = await self._bucket.keys(f"use.{name}.*.*.*")
        parts = [key.split(".") for key in keys]
        return [CredentialUse(flow, holder, int(version)) for _, _, version, flow, holder in parts]

    # Changing.

    async def create(
        self, name: str, value: Mapping[str, Any], description: str, expires_at: float, mark: str, *, dry: bool
    ) -> CredentialHead:
        """The first version of a new credential."""
        found = await self._found(name)
        if found is not None:
            if mark and mark in found[0].requests:
                return found[0]
            raise AlreadyExists(
                f"there is a credential {name!r} already",
                reason="CREDENTIAL_EXISTS",
                next_step=f"Give it a new value: headrace credential update {name} --from FILE",
            )
        raw, now = check_value(value), self._now()
        gone = await self._bucket.get(f"gone.{name}")
        first = int(gone.value or b"0") + 1 if gone is not None else 1
        head = CredentialHead(name, first, tuple(sorted(value)), now, now, description, expires_at, requests=(mark,))
        if dry:
            self._ring.keys()
            return head
        version = await self._store_value(name, first, raw)
        head = msgspec.structs.replace(head, version=version)
        try:
            await self._bucket.create(credential_key(name), msgspec.msgpack.encode(head))
        except Conflict as error:
            await self._bucket.purge(sealed_key(name, version))
            raise AlreadyExists(f"there is a credential {name!r} already", reason="CREDENTIAL_EXISTS") from error
        return head

    async def update(
        self,
        name: str,
        value: Mapping[str, Any] | None,
        change: Callable[[CredentialHead], CredentialHead],
        etag: str,
        mark: str,
    ) -> CredentialHead:
        """With a value: a new version. `change` edits what is not secret."""
        raw = check_value(value) if value is not None else b""
        head, revision = await self._existing(name)
        if mark and mark in head.requests:
            return head
        if head.deleting:
            raise _being_deleted(name)
        check_etag(head, etag)
        version = await self._store_value(name, head.version + 1, raw) if value is not None else head.version
        changed = msgspec.structs.replace(
            change(head),
            version=version,
            fields=tuple(sorted(value)) if value is not None else head.fields,
            updated_at=self._now(),
            edit=head.edit + 1,
            requests=(*head.requests, mark)[-KEPT_MARKS:],
        )
        try:
            await self._bucket.update(credential_key(name), msgspec.msgpack.encode(changed), revision)
        except Conflict as error:
            if value is not None:
                await self._bucket.purge(sealed_key(name, version))
            raise Conflict(
                f"credential {name!r} was changed meanwhile",
                reason="ETAG_MISMATCH",
                next_step=f"Look at it: headrace credential show {name}",
            ) from error
        await self._take_away_unused(name)
        return changed

    async def delete(self, name: str, etag: str) -> None:
        """WrongState CREDENTIAL_IN_USE, naming who, while a deployment uses any version of it."""
        async with self._taking_away:
            head, revision = await self._existing(name)
            check_etag(head, etag)
            if uses := await self.uses(name):
                users = ", ".join(sorted({use.deployment for use in uses})[:5])
                raise WrongState(
                    f"credential {name!r} is used by {users}",
                    reason="CREDENTIAL_IN_USE",
                    next_step=f"Publish those flows without it, or stop them: headrace flow stop {uses[0].flow}",
                    metadata={"credential": name, "deployment": uses[0].deployment},
                )
            marked = msgspec.msgpack.encode(msgspec.structs.replace(head, deleting=True))
            revision = await self._bucket.update(credential_key(name), marked, revision)
            await self._bucket.put(f"gone.{name}", str(head.version).encode())
            for key in await self._bucket.keys(f"value.{name}.*"):
                await self._bucket.purge(key)
            await self._bucket.delete(credential_key(name), revision)

    async def reseal(self) -> tuple[int, int, str]:
        """How many values were sealed anew, how many there are, and the id of the first key."""
        first = self._ring.keys()[0].id
        keys = await self._bucket.keys("value.*.*")
        resealed = 0
        for key in keys:
            entry = await self._bucket.get(key)
            if entry is None or not entry.value:
                continue
            sealed = msgspec.msgpack.decode(entry.value, type=SealedValue)
            if sealed.key_id == first:
                continue
            _, name, version = key.split(".")
            bound = bound_to(self._workspace, name, int(version))
            raw = self._ring.open(sealed, bound, f"version {version} of credential {name!r}")
            anew = msgspec.msgpack.encode(self._ring.seal(raw, bound))
            with contextlib.suppress(Conflict):  # it was taken away meanwhile
                await self._bucket.update(key, anew, entry.revision)
                resealed += 1
        return resealed, len(keys), first

    # Deployments.

    async def newest(self, name: str, field: str) -> CredentialHead:
        """What a new deployment gets; InvalidInput at the field where there is none, or it is expired."""
        head = await self.head(name)
        if head is None or head.deleting:
            raise InvalidInput.at(
                field,
                name,
                "is not a credential of this workspace",
                reason="CREDENTIAL_NOT_FOUND",
                next_step=f"Create it: headrace credential create {name} --from FILE",
            )
        if head.expired(self._now()):
            raise InvalidInput.at(
                field,
                name,
                "is a credential that has expired",
                reason="CREDENTIAL_EXPIRED",
                next_step=f"Renew it: headrace credential update {name} --from FILE --expires TIME",
            )
        return head

    async def freeze(self, name: str, flow: str, deployment: int, field: str) -> CredentialRef:
        """The newest version, marked as used by the deployment, and there after that."""
        async with self._taking_away:
            head = await self.newest(name, field)
            await self.mark(CredentialRef(name, head.version), flow, deployment)
            if await self._bucket.get(sealed_key(name, head.version)) is None:
                raise Unavailable(f"credential {name!r} is being changed", reason="CREDENTIAL_CHANGING")
            return CredentialRef(name, head.version)

    async def mark(self, used: CredentialRef, flow: str, deployment: int) -> None:
        """That a deployment uses a version."""
        await self._bucket.put(credential_use_key(used.name, used.version, flow, f"d{deployment}"), b"")

    async def release(self, flow: str, deployment: int) -> None:
        """The deployment is over: it uses nothing any more; values that nobody uses go."""
        released = await self._bucket.keys(f"use.*.*.{flow}.d{deployment}")
        for key in released:
            await self._bucket.purge(key)
        for name in {key.split(".")[1] for key in released}:
            await self._take_away_unused(name)

    async def _take_away_unused(self, name: str) -> None:
        """Values that are not the newest and that no deployment uses."""
        async with self._taking_away:
            head = await self.head(name)
            if head is None:
                return
            needed = {head.version, *(use.version for use in await self.uses(name))}
            for key in await self._bucket.keys(f"value.{name}.*"):
                version = int(key.rpartition(".")[2])
                if version < head.version and version not in needed:
                    await self._bucket.purge(key)

    async def _store_value(self, name: str, version: int, raw: bytes) -> int:
        """Seals and stores under the first number from `version` on that is free; a killed call may have left one."""
        for number in range(version, version + MOST_TRIES):
            sealed = self._ring.seal(raw, bound_to(self._workspace, name, number))
            with contextlib.suppress(Conflict):
                await self._bucket.create(sealed_key(name, number), msgspec.msgpack.encode(sealed))
                return number
        raise Conflict(f"credential {name!r} keeps changing", reason="BUSY", next_step="Try again")

    async def _found(self, name: str) -> tuple[CredentialHead, int] | None:
        entry = await self._bucket.get(credential_key(name))
        if entry is None:
            return None
        return msgspec.msgpack.decode(entry.value or b"", type=CredentialHead), entry.revision

    async def _existing(self, name: str) -> tuple[CredentialHead, int]:
        found = await self._found(name)
        if found is None:
            raise NotFound(
                f"there is no credential {name!r}",
                reason="CREDENTIAL_NOT_FOUND",
                next_step=f"List them: headrace credential list; create it: headrace credential create {name}",
            )
        return found


def etag_of(head: CredentialHead) -> str:
    """Changes with each update."""
    return f"{head.edit}-{head.version}"


def check_etag(head: CredentialHead, etag: str) -> None:
    """Conflict where another etag was seen."""
    if etag and etag != etag_of(head):
        raise Conflict(
            f"credential {head.name!r} was changed meanwhile: its etag is {etag_of(head)}, not {etag}",
            reason="ETAG_MISMATCH",
            next_step=f"Look at it, then try again: headrace credential show {head.name}",
        )


def _being_deleted(name: str) -> WrongState:
    return WrongState(f"credential {name!r} is being deleted", reason="CREDENTIAL_DELETED", next_step="Create it anew")
