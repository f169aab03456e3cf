"""Brings a flow file into the mesh: pushes its own components, then makes the file the flow's draft."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.api.flow.v1 import flow_pb2
from headrace.client.credential_calls import CredentialCalls
from headrace.client.diagnosis_calls import DiagnosisCalls
from headrace.client.flow_calls import FlowCalls
from headrace.client.flow_check import check_flow_file
from headrace.client.letter_calls import LetterCalls
from headrace.client.registry_calls import RegistryCalls
from headrace.client.snapshot_calls import SnapshotCalls
from headrace.client.step_calls import StepCalls
from headrace.client.watch_calls import WatchCalls
from headrace.model.errors import InvalidInput, NotFound
from headrace.model.flow_spec import FlowSpec
from headrace.wire.flow import flow_spec_from_proto, flow_spec_to_proto

if TYPE_CHECKING:
    from headrace.wire.flow_file import FlowFile

PUSHES_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class AppliedComponent:
    """A folder of the flow file, pushed; `created` is false when the mesh had equal content."""

    component: str
    revision: int
    digest: str
    created: bool


@dataclass(frozen=True, slots=True)
class AppliedFlow:
    """What `apply` did. `change` is `created`, `updated` or `unchanged`."""

    flow: flow_pb2.Flow
    change: str
    components: tuple[AppliedComponent, ...]


class ApplyCalls(
    FlowCalls, RegistryCalls, LetterCalls, SnapshotCalls, CredentialCalls, StepCalls, WatchCalls, DiagnosisCalls
):
    """Calls that need flows and components together."""

    async def apply(
        self,
        file: FlowFile | Path | str,
        *,
        pushed: Callable[[AppliedComponent], None] | None = None,
        validate_only: bool = False,
    ) -> AppliedFlow:
        """Makes a flow file the flow's draft, creating the flow where needed; repeating it changes nothing.

        A step's component that is a folder is pushed first (each folder once; `pushed` hears of it) and
        becomes `name@latest`. InvalidInput names file, line, column and field, also for what the mesh finds wrong;
        a flow that cannot be is refused before anything is pushed. Where something fails later, what was pushed stays
        pushed and the flow is as it was. With `validate_only` all of it is checked and nothing is written.
        """
        from headrace.wire.flow_file import load_flow_file  # only here: YAML takes a while to import

        loaded = load_flow_file(file) if isinstance(file, str | Path) else file
        await check_flow_file(loaded, self.resolve_reference)
        components = await self._push_all(list(dict.fromkeys(loaded.folders.values())), pushed, validate_only)
        references = {step: f"{components[folder].component}@latest" for step, folder in loaded.folders.items()}
        spec = with_references(loaded.spec, references)
        try:
            flow, change = await self._make_draft(loaded.name, spec, validate_only)
        except InvalidInput as error:
            raise loaded.located(error) from error
        return AppliedFlow(flow, change, tuple(components.values()))

    async def _push_all(
        self, folders: list[Path], pushed: Callable[[AppliedComponent], None] | None, validate_only: bool
    ) -> dict[Path, AppliedComponent]:
        slots = asyncio.Semaphore(PUSHES_AT_ONCE)

        async def push(folder: Path) -> AppliedComponent:
            async with slots:
                answer = await self.push_component(folder, validate_only=validate_only)
            revision = answer.revision
            done = AppliedComponent(revision.manifest.component, revision.number, revision.digest, answer.created)
            if pushed is not None:
                pushed(done)
            return done

        # All are waited for, so that no push goes on after an error is told.
        outcomes = await asyncio.gather(*(push(folder) for folder in folders), return_exceptions=True)
        components = {}
        for folder, outcome in zip(folders, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            components[folder] = outcome
        return components

    async def _make_draft(self, name: str, spec: FlowSpec, validate_only: bool) -> tuple[flow_pb2.Flow, str]:
        wanted = flow_spec_to_proto(spec)
        try:
            flow = await self.get_flow(name)
        except NotFound:
            return await self.create_flow(name, wanted, validate_only=validate_only), "created"
        if flow.HasField("draft"):
            present = flow.draft
        elif flow.latest_version:
            present = (await self.get_version(name, flow.latest_version)).spec
        else:
            present = flow_pb2.FlowSpec()
        if present.steps and flow_spec_from_proto(present) == spec:
            return flow, "unchanged"
        updated = await self.update_draft(name, wanted, etag=flow.etag, validate_only=validate_only)
        return updated, "updated"


def with_references(spec: FlowSpec, references: dict[str, str]) -> FlowSpec:
    """The spec with other component references for the steps named."""
    steps = tuple(
        msgspec.structs.replace(step, component=references.get(step.name, step.component)) for step in spec.steps
    )
    return msgspec.structs.replace(spec, steps=steps)
