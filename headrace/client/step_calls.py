"""Steps, asked and tried: `StepService`. Nothing of it is stored or sent on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.api.step.v1 import step_pb2, step_pb2_grpc
from headrace.client.session import Session, resource

# Starting the component comes before the question.
START_S = 140.0
DEFAULT_ASK_S = 30.0


class StepCalls(Session):
    """Each call runs the component in a process of its own, and may take its start (some seconds with a cold cache)."""

    async def run_step(
        self,
        flow: str = "",
        step: str = "",
        body: bytes = b"",
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        dead_letter: int = 0,
        draft: bool = False,
        component: str = "",
        function: str = "",
        config: Mapping[str, Any] | None = None,
        credential: str = "",
        snapshot_json: str = "",
        timeout_s: float = 0.0,
    ) -> step_pb2.RunStepResponse:
        """Runs a step on one input, or on a dead letter, as a dry run: all it did, in order. A call that fails is an
        answer, too (an `error` event). `config` and `credential` in place of the step's own; `component` (a reference)
        in place of a step; `timeout_s` 0 for the step's own limit."""
        step = "" if dead_letter and not step else step
        target = step_target(flow, step, draft, component, function, config, credential)
        request = step_pb2.RunStepRequest(
            target=target, body=body, content_type=content_type, headers=headers or {}, snapshot_json=snapshot_json
        )
        if dead_letter:
            request.dead_letter = f"{resource('flows', flow)}/deadLetters/{dead_letter}"
        if timeout_s:
            request.timeout.FromMilliseconds(round(timeout_s * 1000))
        return await self._call(self._steps().RunStep, request, timeout_s=START_S + (timeout_s or 600.0))

    async def step_metadata(
        self,
        flow: str = "",
        step: str = "",
        *,
        draft: bool = False,
        component: str = "",
        function: str = "",
        config: Mapping[str, Any] | None = None,
        credential: str = "",
    ) -> step_pb2.StepMetadata:
        """What a step (or a component) takes and emits, as JSON Schemas."""
        target = step_target(flow, step, draft, component, function, config, credential)
        request = step_pb2.GetStepMetadataRequest(target=target)
        return await self._call(self._steps().GetStepMetadata, request, timeout_s=START_S + DEFAULT_ASK_S)

    async def select_model(
        self,
        flow: str = "",
        step: str = "",
        model: str = "",
        *,
        draft: bool = False,
        component: str = "",
        config: Mapping[str, Any] | None = None,
        credential: str = "",
    ) -> step_pb2.SelectModelResponse:
        """What can be chosen from a model of a step's component; without `model` only which models there are."""
        target = step_target(flow, step, draft, component, "", config, credential)
        request = step_pb2.SelectModelRequest(target=target, model=model)
        return await self._call(self._steps().SelectModel, request, timeout_s=START_S + DEFAULT_ASK_S)

    def _steps(self) -> Any:
        return step_pb2_grpc.StepServiceStub(self.channel)


def step_target(
    flow: str,
    step: str,
    draft: bool,
    component: str,
    function: str,
    config: Mapping[str, Any] | None,
    credential: str,
) -> step_pb2.StepTarget:
    """Which code is meant."""
    target = step_pb2.StepTarget(draft=draft, component=component, function=function)
    if flow and step and not component:
        target.name = f"{resource('flows', flow)}/steps/{step}"
    if credential:
        target.credential = resource("credentials", credential)
    if config is not None:
        target.config.update(dict(config))
        target.config.SetInParent()
    return target
