"""How other code begins to run: publish, restart, rollback; drafts made of versions and of newest revisions."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from headrace.model.deployment import DeploymentPlan
from headrace.model.deployment_difference import compare
from headrace.model.errors import Conflict, InvalidInput, WrongState
from headrace.model.flow_graph import check_flow
from headrace.model.flow_spec import FlowSpec
from headrace.model.names import parse_reference
from headrace.wire.step_checks import Found, listens
from services.orchestrator.domain import flow_verbs, rollout_verbs
from services.orchestrator.domain.documents import (
    FlowDocument,
    OperationDocument,
    OperationIntent,
    Rollout,
    VersionDocument,
    change,
    encode,
    version_key,
)
from services.orchestrator.domain.flow_states import RUNS, FlowState
from services.orchestrator.flow_service import FlowService
from services.orchestrator.resolution import make_plan, pinned_spec
from services.orchestrator.verb_call import PLAIN_CALL, VerbCall


@dataclass
class Rollouts:
    """The verbs of versions, drafts and deployments; what they begin is done by the flow's loop."""

    flows: FlowService

    async def publish(self, name: str, rollout: Rollout, call: VerbCall = PLAIN_CALL) -> OperationDocument:
        """The draft becomes a version; WrongState UNCHANGED where the running deployment is that already."""
        flows = self.flows

        async def edit(document: FlowDocument, intent: OperationIntent) -> FlowDocument:
            changed, _ = rollout_verbs.begin_publish(document, intent, rollout)
            draft = document.draft
            assert draft is not None
            found = await flows.resolver.check(draft)
            if document.state in RUNS:
                running = await self._running(document)
                rollout_verbs.check_takeover(document, running, draft, rollout.strategy)
                await self._refuse_unchanged(document, running, draft, found)
            if not call.validate_only:
                await self._write_version(name, changed.latest_version, draft)
            return changed

        return await flows.begin(name, "publish", rollout.limit_s, edit, call)

    async def restart(self, name: str, rollout: Rollout, call: VerbCall = PLAIN_CALL) -> OperationDocument:
        """A new deployment of the running version, its references resolved afresh."""
        flows = self.flows

        async def edit(document: FlowDocument, intent: OperationIntent) -> FlowDocument:
            flow_verbs.check_running(document, "restart")
            spec = (await flows.reader.version(name, document.active_version)).spec
            changed, _ = rollout_verbs.begin_restart(document, spec, intent, rollout)
            await flows.resolver.check(spec)
            return changed

        return await flows.begin(name, "restart", rollout.limit_s, edit, call)

    async def rollback(
        self, name: str, version: int, rollout: Rollout, call: VerbCall = PLAIN_CALL
    ) -> OperationDocument:
        """A deployment of a version with the digests it last ran with."""
        if version <= 0:
            raise InvalidInput.at("version", version, "is not a version's number")
        flows = self.flows

        async def edit(document: FlowDocument, intent: OperationIntent) -> FlowDocument:
            source = rollout_verbs.rollback_source(document, version)
            spec = (await flows.reader.version(name, version)).spec
            changed, _ = rollout_verbs.begin_rollback(document, version, spec, intent, rollout)
            if document.state in RUNS:
                rollout_verbs.check_takeover(document, await self._running(document), spec, rollout.strategy)
            found = await flows.resolver.check(pinned_spec(spec, await self._plan(name, source)))
            return change(changed, listens=listens(found)) if document.state == FlowState.STOPPED else changed

        return await flows.begin(name, "rollback", rollout.limit_s, edit, call)

    async def draft_from(
        self, name: str, version: int, etag: str, *, validate_only: bool, mark: str = ""
    ) -> FlowDocument:
        """A version becomes the draft again."""
        document, _ = await self.flows.stores.existing_flow(name)
        flow_verbs.pick_version(document, version)
        spec = (await self.flows.reader.version(name, version)).spec
        return await self.flows.update_draft(name, spec, etag, validate_only=validate_only, mark=mark)

    async def upgrade_draft(
        self, name: str, components: list[str], etag: str, *, validate_only: bool, mark: str = ""
    ) -> tuple[FlowDocument, dict[str, str]]:
        """Newest revisions as exact references; answers what was changed per step (nothing is written then)."""
        document, _ = await self.flows.stores.existing_flow(name)
        if mark and mark in document.requests:
            return document, {}
        flow_verbs.check_etag(document, etag)
        spec = await self._base_of_draft(document)
        used = {parse_reference("component", step.component).component for step in spec.steps if step.has_process}
        for index, component in enumerate(components):
            if component not in used:
                known = ", ".join(sorted(used))
                raise InvalidInput.at(f"components[{index}]", component, f"is not used by {name!r}; it uses {known}")
        wanted = sorted(set(components) or used)
        newest = {component: await self.flows.resolver.newest_number(component) for component in wanted}
        changes: dict[str, str] = {}
        steps = []
        for step in spec.steps:
            if not step.has_process:
                steps.append(step)
                continue
            component = parse_reference("component", step.component).component
            exact = f"{component}@{newest[component]}" if component in newest else step.component
            if exact != step.component:
                changes[step.name] = f"{step.component} -> {exact}"
            steps.append(msgspec.structs.replace(step, component=exact))
        if not changes:
            return document, {}
        upgraded = msgspec.structs.replace(spec, steps=tuple(steps))
        await self.flows.resolver.check(upgraded)
        etag = etag or flow_verbs.etag_of(document)
        written = await self.flows.update_draft(name, upgraded, etag, validate_only=validate_only, mark=mark)
        return written, changes

    async def set_type(
        self, name: str, flow_type: str, etag: str, *, validate_only: bool, mark: str = ""
    ) -> FlowDocument:
        """A stopped flow becomes ordinary or real-time: by a new version, where it has one."""

        async def edit(document: FlowDocument) -> FlowDocument:
            flow_verbs.check_etag(document, etag)
            number = document.latest_version
            deleted = number in document.deleted_versions
            newest = (await self.flows.reader.version(name, number)).spec if number and not deleted else None
            changed, version = rollout_verbs.set_type(document, newest, flow_type)
            if version is not None and not validate_only:
                await self._write_version(name, changed.latest_version, version)
            return changed

        await self.flows.settled(name)
        if validate_only:
            return await edit((await self.flows.stores.existing_flow(name))[0])
        return await self.flows.stores.change_flow(name, edit, mark=mark)

    async def delete_version(self, name: str, version: int, etag: str, mark: str = "") -> None:
        """First decided in the flow document, then pins and the version go: a killed delete leaves pins only."""
        stores = self.flows.stores

        async def edit(document: FlowDocument) -> FlowDocument:
            flow_verbs.check_etag(document, etag)
            plans = [await self.flows.reader.plan(name, number) for number in document.live]
            used = frozenset(plan.version for plan in plans if plan is not None)
            return rollout_verbs.delete_version(document, version, used)

        await stores.change_flow(name, edit, mark=mark)
        await stores.unpin(name, f"v{version}")
        await stores.flows.delete(version_key(name, version))
        self.flows.reader.forget(name)
        self.flows.loops.wake(name)

    async def _base_of_draft(self, document: FlowDocument) -> FlowSpec:
        if document.draft is not None:
            return document.draft
        number = flow_verbs.pick_version(document, document.active_version)
        return (await self.flows.reader.version(document.flow, number)).spec

    async def _refuse_unchanged(
        self, document: FlowDocument, running: DeploymentPlan, draft: FlowSpec, found: list[Found]
    ) -> None:
        check_flow(draft)
        credentials = await self.flows.resolver.newest_credentials(draft)
        candidate = make_plan(running.workspace, document, 0, 0, draft, found, credentials)
        state = await self.flows.stores.state(document.flow, document.active)
        replicas = {step.name: step.replicas for step in draft.steps}
        if compare(running, state[0].replicas if state else replicas, candidate, replicas):
            return
        newer = []
        for item in found:
            number = await self.flows.resolver.newest_number(item.revision.manifest.component)
            if number > item.revision.number:
                newer.append(f"step {item.step.name!r} uses {item.step.component!r}, and revision {number} is there")
        name = document.flow
        next_step = (
            "What would change it: an edit (headrace flow apply FILE) or a push of one of its components. "
            f"For fresh processes of the same: headrace flow restart {name}"
        )
        if newer:
            next_step = f"{'; '.join(newer)}. To use the newest: headrace component upgrade {name}"
        raise WrongState(
            f"flow {name!r} is unchanged: deployment {document.active} (version {document.active_version}) runs "
            "exactly this graph, config and revisions",
            reason="UNCHANGED",
            next_step=next_step,
            metadata={"flow": name, "deployment": str(document.active)},
        )

    async def _running(self, document: FlowDocument) -> DeploymentPlan:
        return await self._plan(document.flow, document.active)

    async def _plan(self, flow: str, deployment: int) -> DeploymentPlan:
        plan = await self.flows.reader.plan(flow, deployment)
        if plan is None:
            raise Conflict(f"the plan of deployment {deployment} of {flow!r} is gone", next_step="Look at its status")
        return plan

    async def _write_version(self, name: str, number: int, spec: FlowSpec) -> None:
        """A version nobody points at yet may be left by a killed orchestrator: it is replaced."""
        stores = self.flows.stores
        version = encode(VersionDocument(name, number, spec, self.flows.clock.now()))
        try:
            await stores.flows.create(version_key(name, number), version)
        except Conflict:
            document, _ = await stores.existing_flow(name)
            if document.latest_version >= number:
                raise Conflict(
                    f"flow {name!r} was published meanwhile", next_step="Look at its versions, then try again"
                ) from None
            await stores.flows.put(version_key(name, number), version)
