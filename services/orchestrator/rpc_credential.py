"""CredentialService: conversion only; what happens is in `credential_store`. No value is ever answered or logged."""

from __future__ import annotations

from typing import Any

import msgspec
from google.protobuf import struct_pb2

from headrace.api.credential.v1 import credential_pb2, credential_pb2_grpc
from headrace.edge.key_ring import KeyRing
from headrace.edge.request_book import RequestBook, Ticket
from headrace.model.credential import MAX_DESCRIPTION, CredentialHead, check_value
from headrace.model.errors import InvalidInput
from headrace.model.json_values import check_text
from headrace.model.names import check_name, parse_resource
from headrace.model.pages import Page
from headrace.wire.flow import seconds_from_duration, struct_to_dict
from services.orchestrator.credential_check import CredentialCheck
from services.orchestrator.credential_refresh import CredentialRefresher
from services.orchestrator.credential_store import CredentialStore, CredentialUse, etag_of
from services.orchestrator.flow_messages import timestamp
from services.orchestrator.rpc_rollouts import flow_of
from services.orchestrator.wall_clock import WallClock

SERVICE_NAME = "headrace.api.credential.v1.CredentialService"


class CredentialRpc(credential_pb2_grpc.CredentialServiceServicer):
    """The servicer."""

    def __init__(
        self,
        store: CredentialStore,
        ring: KeyRing,
        requests: RequestBook,
        refresher: CredentialRefresher,
        check: CredentialCheck,
        clock: WallClock,
    ) -> None:
        self._check = check
        self._store = store
        self._refresher = refresher
        self._ring = ring
        self._requests = requests
        self._clock = clock

    async def CreateCredential(
        self, request: credential_pb2.CreateCredentialRequest, context: Any
    ) -> credential_pb2.Credential:
        name = check_name("credential_id", request.credential_id)
        given = request.credential
        value, description, expires_at = struct_to_dict(given.value), _description(given), self._expiry(given)
        check_value(value)

        async def create(ticket: Ticket) -> credential_pb2.Credential:
            dry = request.validate_only
            head = await self._store.create(name, value, description, expires_at, ticket.mark, dry=dry)
            return self._message(head)

        method, kind = "CredentialService/CreateCredential", credential_pb2.Credential
        return await self._requests.once(method, self._without_value(request), kind, create)

    async def GetCredential(
        self, request: credential_pb2.GetCredentialRequest, context: Any
    ) -> credential_pb2.Credential:
        (name,) = parse_resource("name", request.name, "credentials")
        return self._message(await self._store.existing(name), await self._store.uses(name))

    async def ListCredentials(
        self, request: credential_pb2.ListCredentialsRequest, context: Any
    ) -> credential_pb2.ListCredentialsResponse:
        page = Page.asked("the list of credentials", request.page_size, request.page_token)
        messages, token = page.take(await self._store.heads(), lambda head: head.name, self._message)
        return credential_pb2.ListCredentialsResponse(credentials=messages, next_page_token=token)

    async def UpdateCredential(
        self, request: credential_pb2.UpdateCredentialRequest, context: Any
    ) -> credential_pb2.Credential:
        given = request.credential
        (name,) = parse_resource("credential.name", given.name, "credentials")
        value = struct_to_dict(given.value) if given.HasField("value") else None
        description, expires_at = _description(given), self._expiry(given)
        if value is not None:
            check_value(value)

        def change(head: CredentialHead) -> CredentialHead:
            gone = request.clear_absent
            return msgspec.structs.replace(
                head,
                description=description or ("" if gone else head.description),
                expires_at=expires_at or (0.0 if gone else head.expires_at),
            )

        async def update(ticket: Ticket) -> credential_pb2.Credential:
            etag = request.etag or given.etag
            head = await self._store.update(name, value, change, etag, ticket.mark)
            return self._message(head, await self._store.uses(name))

        method, kind = "CredentialService/UpdateCredential", credential_pb2.Credential
        return await self._requests.once(method, self._without_value(request), kind, update)

    async def DeleteCredential(
        self, request: credential_pb2.DeleteCredentialRequest, context: Any
    ) -> credential_pb2.DeleteCredentialResponse:
        (name,) = parse_resource("name", request.name, "credentials")

        async def delete(ticket: Ticket) -> credential_pb2.DeleteCredentialResponse:
            if not (ticket.repeated and await self._store.head(name) is None):
                await self._store.delete(name, request.etag)
            return credential_pb2.DeleteCredentialResponse()

        method, kind = "CredentialService/DeleteCredential", credential_pb2.DeleteCredentialResponse
        return await self._requests.once(method, request, kind, delete)

    async def RefreshCredentials(
        self, request: credential_pb2.RefreshCredentialsRequest, context: Any
    ) -> credential_pb2.RefreshCredentialsResponse:
        flow = flow_of(request.flow, "flow")
        if request.step:
            check_name("step", request.step)
        steps = [
            credential_pb2.RefreshedStep(
                deployment=f"flows/{flow}/deployments/{item.deployment}",
                step=item.step,
                credential=f"credentials/{item.after.name}",
                version_before=item.before.version,
                version=item.after.version,
                instances=item.instances,
            )
            for item in await self._refresher.refresh(flow, request.step)
        ]
        return credential_pb2.RefreshCredentialsResponse(steps=steps)

    async def VerifyCredential(
        self, request: credential_pb2.VerifyCredentialRequest, context: Any
    ) -> credential_pb2.VerifyCredentialResponse:
        (name,) = parse_resource("name", request.name, "credentials")
        if request.step and request.component:
            raise InvalidInput.at("component", request.component, "stands beside a step", next_step="Name one of them")
        found = await self._check.verify(
            name,
            request.step,
            request.component,
            used_version=request.used_version,
            limit_s=seconds_from_duration(request.timeout),
        )
        answer = credential_pb2.VerifyCredentialResponse()
        for item in found:
            pin = item.subject.step.pin
            answer.verifications.add(
                step=item.subject.name,
                component=pin.component,
                revision=pin.revision_number,
                version=item.version,
                verified=item.verified,
                problem=item.problem,
                kind=item.kind,
                where=item.where,
                asked=item.asked,
            )
        return answer

    async def ResealCredentials(self, request: Any, context: Any) -> credential_pb2.ResealCredentialsResponse:
        resealed, values, key = await self._store.reseal()
        return credential_pb2.ResealCredentialsResponse(resealed=resealed, values=values, key_id=key)

    def _without_value(self, request: Any) -> Any:
        """What the book of requests keeps a digest of: the value only as what nobody can guess against."""
        shown = type(request)()
        shown.CopyFrom(request)
        if request.credential.HasField("value"):
            digest = self._ring.fingerprint(request.credential.value.SerializeToString(deterministic=True))
            shown.credential.value.CopyFrom(struct_pb2.Struct())
            shown.credential.value.update({"fingerprint": digest.hex()})
        return shown

    def _expiry(self, given: credential_pb2.Credential) -> float:
        if not given.HasField("expire_time"):
            return 0.0
        seconds = given.expire_time.seconds + given.expire_time.nanos / 1e9
        if seconds <= 0:
            raise InvalidInput.at("credential.expire_time", seconds, "is not after 1970")
        return seconds

    def _message(self, head: CredentialHead, uses: list[CredentialUse] | None = None) -> credential_pb2.Credential:
        message = credential_pb2.Credential(
            name=f"credentials/{head.name}",
            description=head.description,
            fields=head.fields,
            version=head.version,
            create_time=timestamp(head.created_at),
            update_time=timestamp(head.updated_at),
            expired=head.expired(self._clock.now()),
            uses=[credential_pb2.CredentialUse(deployment=use.deployment, version=use.version) for use in uses or ()],
            etag=etag_of(head),
        )
        if head.expires_at:
            message.expire_time.CopyFrom(timestamp(head.expires_at))
        return message


def _description(given: credential_pb2.Credential) -> str:
    return check_text("credential.description", given.description, limit=MAX_DESCRIPTION)
