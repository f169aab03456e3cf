"""A component in a test: its hooks run, its functions are called, what they did comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

import msgspec

from headrace.api.component.v1 import component_pb2
from headrace.sdk.batch_function import BatchFunction
from headrace.sdk.batch_run import Arrival, BatchRunner
from headrace.sdk.body import JSON, encode_body
from headrace.sdk.call import begin_call, end_call
from headrace.sdk.component import Component
from headrace.sdk.context import StepIdentity, StepScope
from headrace.sdk.errors import DefinitionError
from headrace.sdk.event_frame import EventFrame
from headrace.sdk.hooks import encode_result, run_hook
from headrace.sdk.inquiries import change_credentials, metadata, select_model, verify
from headrace.sdk.log import ComponentLog, LogLine
from headrace.sdk.testing.blocking import LoopThread, TwoFacedHarness
from headrace.sdk.testing.isolation import IsolatedFolder
from headrace.sdk.testing.listener_harness import ListenerHarness
from headrace.sdk.testing.memory_transfers import MemoryTransfers
from headrace.sdk.testing.messages import MessageOptions, input_of
from headrace.sdk.testing.results import CallResult


class ComponentHarness(TwoFacedHarness["BlockingComponentHarness"]):
    """`async with ComponentHarness(folder_or_component, config=...) as harness: await harness.call(...)`.

    A folder is loaded afresh for each harness, so that module state starts anew; a Component that is passed
    in is used as it is. `logs` has what hooks and functions logged.
    """

    def __init__(
        self,
        component: Component | Path | str,
        *,
        config: Mapping[str, Any] | None = None,
        step: StepIdentity | None = None,
        credentials: Mapping[str, Any] | None = None,
        dry_run: bool = False,
    ) -> None:
        self._source = component
        self._config = dict(config or {})
        self._credentials = dict(credentials or {})
        self._dry_run = dry_run
        self._step = step or StepIdentity(workspace="default", flow="test", step="test", version=1, deployment=1)
        self._scope: StepScope | None = None
        self._component: Component | None = None
        self._calls = 0
        self._isolated: IsolatedFolder | None = None
        self.transfers: MemoryTransfers | None = None
        """Bytes of attachments; made at the start, unless it is given."""
        self.logs: list[LogLine] = []

    @property
    def component(self) -> Component:
        assert self._component is not None, "use `async with` or `with`"
        return self._component

    async def start(self) -> None:
        """Loads the component and runs its init hook; raises what they raise."""
        if isinstance(self._source, Component):
            self._source.resolve()
            self._component = self._source
        else:
            folder = Path(self._source)
            if not folder.is_dir():
                raise DefinitionError(f"{folder}: is not a component's folder")
            self._isolated = IsolatedFolder(folder)
            self._component = self._isolated.load()
        log, credentials = ComponentLog(self.logs.append), MappingProxyType(self._credentials)
        scope = StepScope(self._config, self._step, asyncio.Event(), log, credentials, dry_run=self._dry_run)
        scope.transfers = self.transfers = self.transfers or MemoryTransfers()
        try:
            await run_hook(self._component.init_hook, scope)
        except BaseException:
            await self.stop()
            raise
        self._scope = scope

    async def stop(self) -> None:
        """Runs the close hook and forgets the folder's modules."""
        scope, self._scope = self._scope, None
        try:
            if scope is not None and self._component is not None:
                scope.draining.set()
                await run_hook(self._component.close_hook, scope)
        finally:
            if self._isolated is not None:
                self._isolated.close()

    async def startup(self) -> Any:
        """Runs the startup hook, as the start of a flow does; answers what is kept of its result. Raises what it
        raises (in a flow that is logged and ignored)."""
        assert self._scope is not None, "use `async with` or `with`"
        return msgspec.json.decode(encode_result(await run_hook(self.component.startup_hook, self._scope)))

    async def shutdown(self, startup_result: Any = None) -> None:
        """Runs the shutdown hook, as the stop of a flow does."""
        assert self._scope is not None, "use `async with` or `with`"
        scope = replace(self._scope, startup_result=startup_result)
        await run_hook(self.component.shutdown_hook, scope)

    async def call(self, function: str, value: Any = b"", **options: Unpack[MessageOptions]) -> CallResult:
        """One call of a function. Bytes and text go in as they are, any other value as JSON; `options` come with the
        message. A body above 512 KiB comes by reference, as in the mesh."""
        return await self.call_with(function, self._input(value, options))

    def _input(self, value: Any, options: MessageOptions) -> component_pb2.Input:
        assert self.transfers is not None, "use `async with` or `with`"
        self._calls += 1
        return input_of(self._calls, value, options, self.transfers)

    async def call_with(self, function: str, source: component_pb2.Input) -> CallResult:
        """One call with an Input of the contract."""
        assert self._scope is not None, "use `async with` or `with`"
        target = self.component.function(function)
        if target.kind == "listener":
            raise DefinitionError(f"function {target.name!r} is a listener: use harness.listen({target.name!r})")
        if isinstance(target, BatchFunction):
            return (await self.call_batch_with(function, [source]))[0]
        frame = EventFrame()
        lines: list[LogLine] = []
        scope = replace(self._scope, log=ComponentLog(_Both(lines, self.logs)))
        if target.is_async:
            call = begin_call(target, source, scope, frame)
            if call is not None:
                await end_call(call, source.timeout_ms)
        else:
            await asyncio.to_thread(begin_call, target, source, scope, frame)
        assert self.transfers is not None
        await self.transfers.complete(frame.response.events)
        return CallResult(frame, lines, self.transfers.stored)

    async def call_batch(
        self, function: str, values: Sequence[Any], **options: Unpack[MessageOptions]
    ) -> list[CallResult]:
        """One call of a `process_batch` function with several messages; what became of each, in their order. Values as
        in `call`; the options are the same for all. What the batch as a whole has logged is in the logs of each."""
        return await self.call_batch_with(function, [self._input(value, options) for value in values])

    async def call_batch_with(self, function: str, sources: Sequence[component_pb2.Input]) -> list[CallResult]:
        """As `call_batch`, with Inputs of the contract."""
        assert self._scope is not None, "use `async with` or `with`"
        assert self.transfers is not None
        target = self.component.function(function)
        if not isinstance(target, BatchFunction):
            raise DefinitionError(f"function {target.name!r} takes one message a call: use harness.call")
        if len(sources) > target.most:
            raise DefinitionError(f"function {target.name!r} takes at most {target.most} messages a call")
        late, lines = EventFrame(), list[LogLine]()
        frames = [late]

        async def hand_back(ended: list[EventFrame]) -> None:
            frames.extend(ended)

        scope = replace(self._scope, log=ComponentLog(_Both(lines, self.logs)))
        now = asyncio.get_running_loop().time()
        await BatchRunner(target, scope, late, hand_back).run([Arrival(source, now) for source in sources])
        found = []
        for source in sources:
            mine = EventFrame()
            for frame in frames:
                mine.response.events.extend(event for event in frame.response.events if event.call == source.call)
            await self.transfers.complete(mine.response.events)
            own = [line for line in lines if line.get("message_id", source.message_id) == source.message_id]
            found.append(CallResult(mine, own, self.transfers.stored))
        return found

    async def change_credentials(self, **credentials: Any) -> None:
        """Gives the component another credential, as `headrace flow refresh-credentials` does; AssertionError with the
        component's words where it keeps the old one."""
        assert self._scope is not None, "use `async with` or `with`"
        text = encode_body(credentials, JSON)[0].decode()
        problem = await change_credentials(self.component, self._scope, text)
        assert problem is None, problem.message

    async def verify(self, **credentials: Any) -> component_pb2.VerifyResponse:
        """What the verify hook says of a credential (of the harness's, where none is given)."""
        return await verify(self.component, component_pb2.VerifyRequest(**self._asked(credentials)), self._log())

    async def metadata(self, function: str = "", **config: Any) -> component_pb2.GetMetadataResponse:
        """What a function takes and emits; with another configuration, where one is given."""
        request = component_pb2.GetMetadataRequest(function=function, **self._asked({}, config))
        return await metadata(self.component, request, self._log())

    async def select_model(self, model: str, **config: Any) -> component_pb2.SelectModelResponse:
        """What can be chosen; with another configuration, where one is given."""
        request = component_pb2.SelectModelRequest(model=model, **self._asked({}, config))
        return await select_model(self.component, request, self._log())

    def _asked(self, credentials: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {
            "credentials_json": encode_body(dict(credentials or self._credentials), JSON)[0].decode(),
            "config_json": encode_body(dict(config or self._config), JSON)[0].decode(),
        }

    def _log(self) -> ComponentLog:
        return ComponentLog(self.logs.append)

    def listen(self, function: str = "", *, max_unresolved: int = 16) -> ListenerHarness:
        """`async with harness.listen("poll") as listener: emit = await listener.next()`."""
        assert self._scope is not None, "use `async with`"
        return ListenerHarness(self.component.function(function), self._scope, max_unresolved)

    def _blocking(self, loop_thread: LoopThread) -> BlockingComponentHarness:
        return BlockingComponentHarness(self, loop_thread)


class BlockingComponentHarness:
    """What `with ComponentHarness(...)` gives: `call` blocks. Options as in ComponentHarness.call."""

    def __init__(self, harness: ComponentHarness, loop_thread: LoopThread) -> None:
        self._harness = harness
        self._loop_thread = loop_thread

    @property
    def logs(self) -> list[LogLine]:
        return self._harness.logs

    def startup(self) -> Any:
        return self._loop_thread.run(self._harness.startup())

    def shutdown(self, startup_result: Any = None) -> None:
        self._loop_thread.run(self._harness.shutdown(startup_result))

    def call(self, function: str, value: Any = b"", **options: Unpack[MessageOptions]) -> CallResult:
        return self._loop_thread.run(self._harness.call(function, value, **options))

    def call_batch(self, function: str, values: Sequence[Any], **options: Unpack[MessageOptions]) -> list[CallResult]:
        return self._loop_thread.run(self._harness.call_batch(function, values, **options))


class _Both:
    """Writes a log line to the call's list and to the harness's."""

    def __init__(self, *lists: list[LogLine]) -> None:
        self._lists = lists

    def __call__(self, line: LogLine) -> None:
        for lines in self._lists:
            lines.append(line)
