"""A listener trigger's emits: published straight to every receiver, and resolved once the broker has them all.

`listen()` runs from Activate to Drain, and again after a crash of the component. The number of unresolved
emits is bounded by telling the component the limit and refusing what exceeds it; a drain fails those that are
still blocked after its limit, so that their source keeps them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.edge.stimulus_traces import StimulusTrace, StimulusTraces
from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.model.hop_record import Site
from headrace.model.message_ids import execution_id, output_message_id, stimulus_id
from headrace.model.trace_context import bounded_baggage
from headrace.ports import Stored
from headrace.wire.envelope import MalformedMessage, encode_shared
from services.sidecar.domain.delivery import Problem, check_output
from services.sidecar.domain.retry_delay import restart_delay_s
from services.sidecar.edge_rules import RoutedEmit
from services.sidecar.outbox import Outbox, Outgoing
from services.sidecar.outputs import edges_of
from services.sidecar.passthrough import passthrough_problem, with_own
from services.sidecar.timers import Timers

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from services.sidecar.attached_outputs import AttachedOutputs
    from services.sidecar.component_process import ComponentProcess
    from services.sidecar.edge_rules import EdgeRules
    from services.sidecar.pace import Pace

log = get_logger(__name__)

DRAIN_LIMIT_S = 5.0


class _Emit:
    __slots__ = ("number", "outgoing", "run", "trace")

    def __init__(self, number: int, run: _Run) -> None:
        self.number, self.run = number, run
        self.outgoing: set[Outgoing] = set()
        self.trace = StimulusTrace("")


class _Run:
    """One Listen call: what it still owes the component."""

    def __init__(self) -> None:
        self.unresolved: dict[int, _Emit] = {}
        self.answers: asyncio.Queue[Any] = asyncio.Queue()


class ListenerFeed:
    """`tasks` owns its one task; `on_occupancy` is called when it is over."""

    def __init__(
        self,
        plan: DeploymentPlan,
        step: StepPlan,
        outbox: Outbox,
        counters: dict[str, int],
        tasks: asyncio.TaskGroup,
        *,
        on_occupancy: Callable[[], None],
        pace: Pace | None = None,
        timers: Timers,
        traces: StimulusTraces | None = None,
        rules: EdgeRules | None = None,
        attached: AttachedOutputs | None = None,
    ) -> None:
        self._plan = plan
        self._step = step
        self._outbox = outbox
        self._counters = counters
        self._tasks = tasks
        self._on_occupancy = on_occupancy
        self._pace = pace
        self._timers = timers
        self._traces = traces or StimulusTraces(None, "listener", lambda flow: Site("", "", flow))
        self._rules, self._attached = rules, attached
        self._edges = edges_of(plan, step)
        self._max_unresolved = step.prefetch
        self._process: ComponentProcess | None = None
        self._active = False
        self._draining = asyncio.Event()
        self._component_changed = asyncio.Event()
        self._run: _Run | None = None
        self._task: asyncio.Task[None] | None = None
        self.last_emit_at = 0.0

    @property
    def unresolved(self) -> int:
        return len(self._run.unresolved) if self._run is not None else 0

    @property
    def closed(self) -> bool:
        """Not listening: never active, or drained."""
        return self._task is None or self._task.done()

    def component_ready(self, process: ComponentProcess) -> None:
        self._process = process
        self._component_changed.set()

    def component_lost(self) -> None:
        self._process = None
        self._component_changed.set()

    def activate(self) -> None:
        if self._task is None and not self._draining.is_set():
            self._task = self._tasks.create_task(self._listen_until_drained(), name="listener")

    def drain(self) -> None:
        """No more of the source is read; open emits get a last chance."""
        self._draining.set()
        self._component_changed.set()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1.0)

    async def _listen_until_drained(self) -> None:
        failures = 0
        try:
            while not self._draining.is_set():
                if self._process is None:
                    self._component_changed.clear()
                    await self._component_changed.wait()
                    continue
                began = asyncio.get_running_loop().time()
                cause = await self._listen_once(self._process)
                if self._draining.is_set():
                    return
                failures = 0 if asyncio.get_running_loop().time() - began > 30 else failures + 1
                log.warning("listener ended; it is started again", cause=cause, failures=failures)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(restart_delay_s(failures or 1)):
                        await self._draining.wait()
        finally:
            asyncio.get_running_loop().call_soon(self._on_occupancy)

    async def _listen_once(self, process: ComponentProcess) -> str:
        """One Listen call; answers why it ended."""
        import grpc

        from headrace.api.component.v1 import component_pb2

        run = self._run = _Run()
        call = process.listen()
        start = component_pb2.ListenStart(max_unresolved=self._max_unresolved)
        run.answers.put_nowait(component_pb2.ListenRequest(start=start))
        writer = asyncio.ensure_future(self._write(call, run))
        drainer = asyncio.ensure_future(self._drain_when_asked(run, call))
        try:
            while True:
                response = await call.read()
                if response is grpc.aio.EOF:
                    break
                for emit in response.emits:
                    self._take(run, emit)
            code = await call.code()
            return f"{code.name}: {await call.details()}"
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return "cancelled at the limit of its drain"
        finally:
            await end_tasks([writer, drainer])
            call.cancel()
            # Whoever emitted is gone: its source has not committed and will give it again, under the same id.
            for emit in run.unresolved.values():
                for outgoing in tuple(emit.outgoing):
                    self._outbox.withdraw(outgoing)
            self._run = None

    async def _write(self, call: Any, run: _Run) -> None:
        import grpc

        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await call.write(await run.answers.get())

    async def _drain_when_asked(self, run: _Run, call: Any) -> None:
        from headrace.api.component.v1 import component_pb2

        await self._draining.wait()
        run.answers.put_nowait(component_pb2.ListenRequest(drain=component_pb2.ListenDrain()))
        await asyncio.sleep(DRAIN_LIMIT_S)
        for emit in list(run.unresolved.values()):
            self._resolve(
                emit, "DRAINING", f"the edge did not take the message within {DRAIN_LIMIT_S:g} s of the drain"
            )
        await asyncio.sleep(1.0)
        call.cancel()

    def _take(self, run: _Run, given: Any) -> None:
        emit = _Emit(given.emit, run)
        run.unresolved[given.emit] = emit
        if len(run.unresolved) > self._max_unresolved:
            self._resolve(emit, "TOO_MANY_UNRESOLVED", f"more than {self._max_unresolved} emits are unresolved")
            return
        problem = check_output(0, len(given.data.body))
        if problem is None and self._plan.passthrough:
            problem = passthrough_problem((), self._step.name, [given.data])
        if problem is not None:
            self._resolve(emit, problem.code, problem.message)
            return
        self._counters["received"] += 1
        self.last_emit_at = time.monotonic()
        source = f"{self._step.name}:{given.source_id}" if given.source_id else f"{self._step.name}:{uuid.uuid4().hex}"
        stimulus = stimulus_id(self._plan.flow, "listener", source)
        emit.trace = self._traces.begin(
            f"emit {self._step.name}",
            self._plan.flow,
            execution=execution_id(stimulus),
            stimulus=stimulus,
            given=given.data.headers.get("traceparent", ""),
        )
        if given.data.attachments and self._attached is not None:
            self._attached.settle_emit(given.data, partial(self._route, emit, stimulus, given.data))
        else:
            self._route(emit, stimulus, given.data, None)

    def _route(self, emit: _Emit, stimulus: str, data: Any, problem: Problem | None) -> None:
        if problem is not None or self._rules is None:
            self._routed(emit, stimulus, [data], problem)
        else:
            done = partial(self._routed, emit, stimulus)
            self._rules.route([data], stimulus, execution_id(stimulus), (), done)

    def _routed(self, emit: _Emit, stimulus: str, outputs: Sequence[Any], problem: Problem | None) -> None:
        if problem is not None:
            self._resolve(emit, problem.code, problem.message)
        elif emit.run is self._run and emit.number in emit.run.unresolved:
            self._send(emit, stimulus, outputs[0])

    def _send(self, emit: _Emit, stimulus: str, data: Any) -> None:
        """To each receiver; one that nobody gets is resolved at once."""
        stored, refused = partial(self._stored, emit), partial(self._refused, emit)
        unmapped, context = b"", emit.trace.traceparent
        try:
            for edge in self._edges:
                given = data.for_receiver(edge.receiver) if isinstance(data, RoutedEmit) else data
                if given is not None:
                    message_id = output_message_id(stimulus, self._step.name, "0", edge.receiver)
                    shared = unmapped if given is data and unmapped else self._shared(stimulus, given)
                    unmapped = shared if given is data else unmapped
                    emit.outgoing.add(edge.outgoing(message_id, given, shared, context, stored, refused))
        except MalformedMessage as error:
            emit.outgoing.clear()
            self._resolve(emit, error.reason, error.message)
            return
        if not emit.outgoing:
            self._resolve(emit)
        wait_s = self._pace.reserve() if self._pace is not None else 0.0
        if wait_s:
            self._timers.later(wait_s, partial(self._publish, emit))
        else:
            self._publish(emit)

    def _shared(self, stimulus: str, data: Any) -> bytes:
        return encode_shared(
            execution_id=execution_id(stimulus),
            parent_id=stimulus,
            body=data.body,
            content_type=data.content_type,
            headers=data.headers,
            sender=self._step.name,
            baggage=bounded_baggage(data.headers.get("baggage", "")),
            passthrough=with_own((), self._step.name, data) if self._plan.passthrough else (),
            attachments=data.attachments,
        )

    def _publish(self, emit: _Emit) -> None:
        for outgoing in tuple(emit.outgoing):
            if not outgoing.withdrawn:
                self._outbox.put(outgoing)

    def _stored(self, emit: _Emit, outgoing: Outgoing, stored: Stored) -> None:
        del stored
        self._counters["emitted"] += 1
        emit.outgoing.discard(outgoing)
        if not emit.outgoing:
            self._resolve(emit)

    def _refused(self, emit: _Emit, outgoing: Outgoing, problem: Problem) -> None:
        emit.outgoing.discard(outgoing)
        self._resolve(emit, problem.code, problem.message)

    def _resolve(self, emit: _Emit, code: str = "", message: str = "") -> None:
        if emit.run.unresolved.pop(emit.number, None) is None:
            return  # resolved before, with an error
        self._traces.end(emit.trace, code=code, problem=message)
        for outgoing in tuple(emit.outgoing):
            self._outbox.withdraw(outgoing)
        from headrace.api.component.v1 import component_pb2

        if not code:
            self._counters["processed"] += 1
        resolved = component_pb2.ListenResolved(emit=emit.number, error_code=code, error_message=message)
        emit.run.answers.put_nowait(component_pb2.ListenRequest(resolved=resolved))
