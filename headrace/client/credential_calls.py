"""What components log in with elsewhere: `CredentialService`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from headrace.api.credential.v1 import credential_pb2, credential_pb2_grpc
from headrace.client.session import PAGE_SIZE, Session, resource
from headrace.model.credential import inexact_field
from headrace.model.errors import InvalidInput

REFRESH_LIMIT_S = 60.0
VERIFY_LIMIT_S = 200.0


class CredentialCalls(Session):
    """Values go to the mesh and never come back; answers have the names of fields."""

    async def create_credential(
        self, name: str, value: Mapping[str, Any], *, description: str = "", expires_at: float = 0.0
    ) -> credential_pb2.Credential:
        """`value` is an object of fields, at most 64 KiB as JSON; `expires_at` in Unix seconds, 0 for never."""
        request = credential_pb2.CreateCredentialRequest(
            credential_id=name, credential=_given("", value, description, expires_at)
        )
        return await self._call(self._credentials().CreateCredential, request)

    async def get_credential(self, name: str) -> credential_pb2.Credential:
        """With who uses which version."""
        request = credential_pb2.GetCredentialRequest(name=resource("credentials", name))
        return await self._call(self._credentials().GetCredential, request)

    async def list_credentials(self) -> list[credential_pb2.Credential]:
        """All of them, by name."""

        async def page(token: str) -> tuple[list[credential_pb2.Credential], str]:
            request = credential_pb2.ListCredentialsRequest(page_size=PAGE_SIZE, page_token=token)
            answer = await self._call(self._credentials().ListCredentials, request)
            return list(answer.credentials), answer.next_page_token

        return await self._collect(page)

    async def update_credential(
        self,
        name: str,
        value: Mapping[str, Any] | None = None,
        *,
        description: str = "",
        expires_at: float = 0.0,
        etag: str = "",
    ) -> credential_pb2.Credential:
        """A new value (None: it stays), description or expiry. Flows that run keep the value that they have, until
        `refresh_credentials`."""
        given = _given(resource("credentials", name), value, description, expires_at)
        request = credential_pb2.UpdateCredentialRequest(credential=given, etag=etag)
        return await self._call(self._credentials().UpdateCredential, request)

    async def delete_credential(self, name: str, *, etag: str = "") -> None:
        """WrongState CREDENTIAL_IN_USE while a deployment uses it."""
        request = credential_pb2.DeleteCredentialRequest(name=resource("credentials", name), etag=etag)
        await self._call(self._credentials().DeleteCredential, request)

    async def verify_credential(
        self, name: str, *, step: str = "", component: str = "", used_version: bool = False
    ) -> list[credential_pb2.Verification]:
        """What the components that use it say of its newest value (or of the version that each uses now); `step`
        (`orders/ship`) or `component` (a reference) asks only that one."""
        flow, _, step_name = step.removeprefix("flows/").replace("/steps/", "/").partition("/")
        request = credential_pb2.VerifyCredentialRequest(
            name=resource("credentials", name),
            step=f"flows/{flow}/steps/{step_name}" if step else "",
            component=component,
            used_version=used_version,
        )
        answer = await self._call(self._credentials().VerifyCredential, request, timeout_s=VERIFY_LIMIT_S)
        return list(answer.verifications)

    async def refresh_credentials(self, flow: str, step: str = "") -> list[credential_pb2.RefreshedStep]:
        """Gives the newest versions to a flow that runs (or to one step): what uses another one now. WrongState
        CREDENTIAL_REFUSED, with the component's words, where a component keeps what it had."""
        request = credential_pb2.RefreshCredentialsRequest(flow=resource("flows", flow), step=step)
        answer = await self._call(self._credentials().RefreshCredentials, request, timeout_s=REFRESH_LIMIT_S)
        return list(answer.steps)

    async def reseal_credentials(self) -> credential_pb2.ResealCredentialsResponse:
        """Encrypts all values with the first key of the key file."""
        return await self._call(self._credentials().ResealCredentials, credential_pb2.ResealCredentialsRequest())

    def _credentials(self) -> Any:
        return credential_pb2_grpc.CredentialServiceStub(self.channel)


def _given(
    name: str, value: Mapping[str, Any] | None, description: str, expires_at: float
) -> credential_pb2.Credential:
    given = credential_pb2.Credential(name=name, description=description)
    if value is not None:
        if place := inexact_field(value):
            raise InvalidInput.at(
                f"credential.value.{place}", "***", "is a number that would not arrive exactly",
                next_step="Put it in quotes",
            )  # fmt: skip
        given.value.CopyFrom(struct_pb2.Struct())
        given.value.update(dict(value))
    if expires_at:
        given.expire_time.FromNanoseconds(int(expires_at * 1e9))
    return given
