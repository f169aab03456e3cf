"""The credential of an instance's step: fetched sealed, opened here, handed to the component, never written down.

Which version counts is in the deployment's documents. A value once opened stays in memory, so that neither a crash of
the component nor a key file that was lost meanwhile stands in the way of what runs.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from headrace.edge.key_ring import KeyRing
from headrace.model.credential import CredentialRef, SealedValue, bound_to, sealed_key
from headrace.model.errors import NotFound
from headrace.model.secret_mask import SecretMask

if TYPE_CHECKING:
    from headrace.document_ports import Bucket


@dataclass(frozen=True, slots=True, repr=False)
class ClearCredential:
    """What a component gets: JSON text and version. Without credential: empty and 0."""

    text: str = ""
    version: int = 0


NO_CREDENTIAL = ClearCredential()


class StepCredentials:
    """`fetch` opens a version; `present` is what the component has, or gets when it starts."""

    def __init__(
        self,
        workspace: str,
        open_bucket: Callable[[], Awaitable[Bucket]],
        mask: SecretMask,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._workspace = workspace
        self._open_bucket = open_bucket
        self._mask = mask
        self._ring = KeyRing(environ)
        self._bucket: Bucket | None = None
        self.present = NO_CREDENTIAL
        self.planned: CredentialRef | None = None
        """As the deployment's plan says; None before it was read, and where the step names none."""

    async def load(self, wanted: CredentialRef | None) -> None:
        """Makes `present` the wanted one, unless it is already. NotFound, WrongState (no key), Unavailable."""
        if wanted is not None and wanted.version != self.present.version:
            self.present = await self.fetch(wanted)

    async def fetch(self, wanted: CredentialRef) -> ClearCredential:
        """The clear value of a version; from now on the logs of this instance mask it."""
        if self._bucket is None:
            self._bucket = await self._open_bucket()
        what = f"version {wanted.version} of credential {wanted.name!r}"
        entry = await self._bucket.get(sealed_key(wanted.name, wanted.version))
        if entry is None or not entry.value:
            raise NotFound(
                f"{what} is not there any more",
                reason="CREDENTIAL_NOT_FOUND",
                next_step=f"Restart the flow, or see: headrace credential show {wanted.name}",
            )
        sealed = msgspec.msgpack.decode(entry.value, type=SealedValue)
        raw = self._ring.open(sealed, bound_to(self._workspace, wanted.name, wanted.version), what)
        self._mask.learn_all(msgspec.json.decode(raw))
        return ClearCredential(raw.decode(), wanted.version)
