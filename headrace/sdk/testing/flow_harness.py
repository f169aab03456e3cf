"""A whole flow in a test: every step's component in this process, messages passed from hand to hand.

Steps are called one at a time, breadth first, so that a run is the same every time. Retries happen at once.
Ids, limits on outputs, retries and the answers to failures follow the mesh.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from headrace.api.component.v1 import component_pb2
from headrace.model.error_steps import error_steps
from headrace.model.errors import InvalidInput
from headrace.model.flow_spec import StepSpec
from headrace.model.limits import MAX_BODY_BYTES
from headrace.model.message_ids import execution_id, first_message_id, stimulus_id
from headrace.sdk.body import JSON, encode_body
from headrace.sdk.component import Component
from headrace.sdk.context import StepIdentity
from headrace.sdk.log import LogLine
from headrace.sdk.testing.blocking import LoopThread, TwoFacedHarness
from headrace.sdk.testing.component_harness import ComponentHarness
from headrace.sdk.testing.flow_edges import EdgeFailed, FlowEdges, KeptSnapshots, error_message
from headrace.sdk.testing.memory_transfers import MemoryTransfers
from headrace.sdk.testing.results import CallResult, Failure, Output, Reply
from headrace.wire.flow_file import load_flow_file

REBOUNDS_AT_ONCE = 20
MAX_CALLS = 10_000


@dataclass(frozen=True, slots=True)
class StepError:
    """An input that a step gave up on, after its attempts; also where its error step got it then."""

    step: str
    failure: Failure
    attempts: int


@dataclass(slots=True)
class FlowResult:
    """Everything one stimulus caused."""

    execution_id: str
    reply: Reply | None = None
    """The first reply; a failure answers too, with `{"error": {...}}`. None: a caller would wait until 504."""
    outputs: dict[str, list[Output]] = field(default_factory=dict)
    """What each step emitted, in order."""
    errors: list[StepError] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    """Steps in the order in which they finished a message."""
    logs: list[LogLine] = field(default_factory=list)


class FlowHarness(TwoFacedHarness["BlockingFlowHarness"]):
    """`async with FlowHarness("flow.yaml") as flow: result = await flow.send(body)`.

    `components` gives the component (a folder or a Component) of steps whose component is not a folder in the
    file; `config` replaces the configuration of steps.
    """

    def __init__(
        self,
        flow: Path | str,
        *,
        components: Mapping[str, Component | Path | str] | None = None,
        config: Mapping[str, Mapping[str, Any]] | None = None,
        credentials: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """`components` and `config` by step, in place of what the file says; `credentials` by name."""
        self._credentials = dict(credentials or {})
        self._file = load_flow_file(flow)
        self._components = dict(components or {})
        self._config = dict(config or {})
        self._steps = {step.name: step for step in self._file.spec.steps}
        self._edges, self._kept = FlowEdges(self._file.spec), KeptSnapshots()
        self._entry = self._file.check().entry
        self._handlers = {name: self._steps[found.step] for name, found in error_steps(self._file.spec).items()}
        self._failures: dict[str, Failure] = {}
        """By the message that an error step gets."""
        self._harnesses: dict[str, ComponentHarness] = {}
        self._transfers: MemoryTransfers | None = None
        for given in (self._components, self._config):
            for name in given:
                if name not in self._steps:
                    raise InvalidInput.at("step", name, "is not a step", next_step=f"Steps: {', '.join(self._steps)}")

    async def start(self) -> None:
        """Loads every step's component and runs its init hook; what was started is stopped if one fails."""
        try:
            for index, (name, step) in enumerate(self._steps.items()):
                if not step.has_process:
                    continue
                source = self._components.get(name) or self._file.folders.get(name)
                if source is None:
                    raise InvalidInput.at(
                        f"steps[{index}].component", step.component, "is not a folder",
                        next_step=f"Pass components={{{name!r}: ...}} to the harness",
                    )  # fmt: skip
                identity = StepIdentity("default", self._file.name, name, 1, 1, step.component)
                if step.credential and step.credential not in self._credentials:
                    raise InvalidInput.at(
                        f"steps[{index}].credential", step.credential, "is not given to the harness",
                        next_step=f"Pass credentials={{{step.credential!r}: ...}}",
                    )  # fmt: skip
                harness = ComponentHarness(
                    source,
                    config=self._config.get(name, step.config),
                    step=identity,
                    credentials=self._credentials.get(step.credential),
                )
                harness.transfers = self._transfers = self._transfers or MemoryTransfers()
                await harness.start()
                harness.component.function(step.function)
                self._harnesses[name] = harness
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        while self._harnesses:
            _, harness = self._harnesses.popitem()
            await harness.stop()

    async def send(
        self,
        value: Any = b"",
        *,
        headers: Mapping[str, str] | None = None,
        content_type: str = "",
        method: str = "POST",
        path: str = "",
        query: str = "",
        attachments: Mapping[str, bytes] | None = None,
    ) -> FlowResult:
        """Sends one request to the trigger (or past it, where it has no component) and runs until nothing is left.
        Bytes and text go as they are, any other value as JSON. `attachments` go along, by name."""
        assert self._transfers is not None, "use `async with` or `with`"
        body, content_type = encode_body(value, content_type or (JSON if not isinstance(value, (bytes, str)) else ""))
        stimulus = stimulus_id(self._file.name, "webhook", uuid.uuid4().hex)
        result = FlowResult(execution_id(stimulus))
        given = {name.lower(): text for name, text in (headers or {}).items()}
        given |= {"headrace-method": method, "headrace-path": path, "headrace-query": query}
        first = component_pb2.Input(
            body=body,
            content_type=content_type,
            headers=given,
            message_id=first_message_id(stimulus, self._entry),
            execution_id=result.execution_id,
            wants_reply=self._file.spec.reply_timeout_s > 0,
        )
        for name, content in (attachments or {}).items():
            first.attachments.append(self._transfers.put(content, name=name))
        if len(body) > MAX_BODY_BYTES:
            first.attachments.append(self._transfers.put(body, content_type=content_type, is_body=True))
            first.body = b""
        waiting = deque([(self._steps[self._entry], first)])
        while waiting:
            step, message = waiting.popleft()
            waiting.extend(await self._handle(step, message, result))
            if len(result.order) > MAX_CALLS:
                raise RuntimeError(f"more than {MAX_CALLS} messages from one request")
        return result

    async def _handle(
        self, step: StepSpec, message: component_pb2.Input, result: FlowResult
    ) -> list[tuple[StepSpec, component_pb2.Input]]:
        """Calls the step until the message is done or given up; answers who gets what then."""
        harness = self._harnesses[step.name]
        function = harness.component.function(step.function)
        if function.kind == "listener":
            # A listener makes its stimuli itself: what was sent is one of them.
            called: CallResult | None = None
            outputs = [Output(message.body, message.content_type, {})]
        else:
            called, failure, attempts = await self._attempts(harness, function.name, step, message)
            result.logs += called.logs
            if failure is not None:
                result.order.append(step.name)
                return self._give_up(step, message, result, failure, attempts)
            outputs = called.outputs
        result.order.append(step.name)
        result.outputs.setdefault(step.name, []).extend(outputs)
        if called is not None and called.reply is not None and message.wants_reply and result.reply is None:
            result.reply = called.reply
        try:
            passed = self._edges.pass_on(step, message, outputs)
        except EdgeFailed as error:
            return self._give_up(step, message, result, Failure(error.code, str(error), 0, False), message.attempt)
        failed = self._failures.pop(message.message_id, None)
        if failed is not None and not passed and message.wants_reply and result.reply is None:
            result.reply = _error_reply(failed, result.execution_id)
        return [(self._steps[receiver], given) for receiver, given in passed]

    def _give_up(
        self, step: StepSpec, message: component_pb2.Input, result: FlowResult, failure: Failure, attempts: int
    ) -> list[tuple[StepSpec, component_pb2.Input]]:
        result.errors.append(StepError(step.name, failure, attempts))
        rejected = message.wants_reply and 400 <= failure.status <= 499
        handler = None if rejected else self._handlers.get(step.name)
        if handler is not None:
            given = error_message(step, handler.name, message, failure, attempts)
            self._failures[given.message_id] = failure
            return [(handler, given)]
        if message.wants_reply and result.reply is None:
            result.reply = _error_reply(failure, result.execution_id)
        return []

    async def _attempts(
        self, harness: ComponentHarness, function: str, step: StepSpec, message: component_pb2.Input
    ) -> tuple[CallResult, Failure | None, int]:
        failures = rebounds = 0
        message.timeout_ms = round(step.timeout_s * 1000)
        while True:
            message.attempt = failures + rebounds + 1
            self._kept.give(step, message)
            called = self._kept.save(step, message, await harness.call_with(function, message))
            if called.rebound is not None:
                rebounds += 1
                if rebounds > REBOUNDS_AT_ONCE:
                    failure = Failure("REBOUND_LIMIT", f"asked to try again later {rebounds} times", 0, False)
                    return called, failure, message.attempt
                continue
            if called.error is None:
                return called, None, message.attempt
            failures += 1
            if not called.error.retryable or failures >= step.retry.attempts:
                return called, called.error, message.attempt

    def _blocking(self, loop_thread: LoopThread) -> BlockingFlowHarness:
        return BlockingFlowHarness(self, loop_thread)


class BlockingFlowHarness:
    """What `with FlowHarness(...)` gives: `send` blocks. Options as in FlowHarness.send."""

    def __init__(self, harness: FlowHarness, loop_thread: LoopThread) -> None:
        self._harness = harness
        self._loop_thread = loop_thread

    def send(self, value: Any = b"", **options: Any) -> FlowResult:
        return self._loop_thread.run(self._harness.send(value, **options))


def _error_reply(failure: Failure, execution: str) -> Reply:
    status = failure.status if 400 <= failure.status <= 599 else 500
    error = {"code": failure.code, "message": failure.message, "execution": execution}
    return Reply(status, msgspec.json.encode({"error": error}), JSON, {})
