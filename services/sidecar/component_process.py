"""One run of a step's component: process, socket, Handshake, Init, the Process stream and its self-check.

Configuration and secrets go through Init, never through the environment or the command line. `ComponentFailed` says at
which stage it failed and why.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.edge.child_process import ChildProcess, describe_exit, end_adopted
from headrace.model.deployment import DeploymentPlan, StepPlan
from services.sidecar.component_calls import ComponentCalls, ComponentFailed
from services.sidecar.component_command import component_command
from services.sidecar.component_stacks import sidecar_stacks, stacks_file, stacks_of
from services.sidecar.credentials import NO_CREDENTIAL, ClearCredential
from services.sidecar.log_capture import LogCapture
from services.sidecar.process_watch import limit_process
from services.sidecar.settings import OWN_STREAM, SIDECAR_VERSION, Settings

if TYPE_CHECKING:
    import grpc

    from headrace.api.sidecar.v1 import sidecar_pb2
    from headrace.ports import ComponentStream
    from services.sidecar.spare_component import SpareComponent

PROTOCOL_VERSION = 1
HANDSHAKE_LIMIT_S = 10.0
INIT_LIMIT_S = 60.0
UPDATE_LIMIT_S = 30.0
PING_LIMIT_S = 10.0
END_GRACE_S = 1.0


def process_socket(socket: Path) -> Path:
    """Where a component serves `Process` too, if it says so."""
    return Path(f"{socket}.process")


@dataclass(frozen=True, slots=True)
class ComponentFacts:
    """What the component said of itself."""

    sdk: str
    interpreter: str


class ComponentProcess:
    """Create with `spawn`; then `serve` once; `wait` for its end; `end` it."""

    def __init__(self, child: ChildProcess, socket: Path, logs: LogCapture, settings: Settings) -> None:
        self._child = child
        self._start_limit_s = settings.component_start_limit_s
        self._own_stream = settings.component_stream == OWN_STREAM
        self._socket = socket
        self._logs = logs
        self._calls = ComponentCalls(child, logs)
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._stack_signal = 0
        self._process_socket = socket
        self.carries_bytes = False
        """Whether it serves Transfer; known after the handshake."""
        self._takes_lots = False
        self.startup_hook = self.shutdown_hook = False  # known after the handshake
        self._stream: ComponentStream | None = None
        self.credentials_version = 0
        """Which version of its credential it has."""

    @classmethod
    def spawn(
        cls,
        settings: Settings,
        *,
        bundle: Path,
        python: Path,
        entrypoint: str,
        logs: LogCapture,
        spare: SpareComponent | None = None,
    ) -> ComponentProcess:
        """Starts the process, out of the spare one where that fits; it imports its code while the caller goes on."""
        socket = settings.component_socket()
        socket.parent.mkdir(parents=True, exist_ok=True)
        socket.unlink(missing_ok=True)
        command = component_command(settings, bundle, python, entrypoint, socket, logs.feed)
        taken = spare.take(command) if spare is not None else None
        child = taken or ChildProcess.spawn(command, readiness=True)
        limit_process(child.pid, settings.component_limits)
        return cls(child, socket, logs, settings)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.exit_status is None

    async def wait_for_socket(self) -> None:
        """Until the component serves; ComponentFailed when it ends first or takes too long."""
        try:
            await self._child.ready(self._start_limit_s)
        except TimeoutError as error:
            raise self._calls.failed(
                "COMPONENT_SOCKET_NOT_OPENED",
                f"the component did not open its socket within {self._start_limit_s:g} s",
                "Is there something at module level that waits?",
            ) from error
        except ConnectionError as error:
            await self._calls.let_it_exit()
            raise self._calls.failed(
                "COMPONENT_EXITED", f"the component {self._calls.ending} before it served"
            ) from error

    async def handshake(self, function: str) -> ComponentFacts:
        """Checks contract version and function."""
        from headrace.api.component.v1 import component_pb2, component_pb2_grpc
        from headrace.edge.grpc_channel import open_channel

        # On one machine a socket tells of its peer's end, and the liveness check of its silence: nothing is pinged.
        self._channel = open_channel(f"unix:{self._socket}")
        self._stub = component_pb2_grpc.ComponentServiceStub(self._channel)  # type: ignore[no-untyped-call]
        request = component_pb2.HandshakeRequest(protocol_version=PROTOCOL_VERSION, sidecar_version=SIDECAR_VERSION)
        answer = await self._calls.call("HANDSHAKE", self._stub.Handshake, request, HANDSHAKE_LIMIT_S, connecting=True)
        self._stack_signal = answer.stack_signal
        if answer.process_socket:
            self._process_socket = process_socket(self._socket)
        self.carries_bytes, self._takes_lots = answer.transfers, answer.lots
        self.startup_hook, self.shutdown_hook = answer.startup_hook, answer.shutdown_hook
        if answer.protocol_version != PROTOCOL_VERSION:
            raise self._calls.failed(
                "PROTOCOL_VERSION",
                f"the component speaks version {answer.protocol_version} of the contract, not {PROTOCOL_VERSION}",
                "Build it with an SDK of this mesh's version",
            )
        names = [known.name for known in answer.functions]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise self._calls.failed(
                "DUPLICATE_FUNCTION",
                f"the component claims its function {twice!r} twice",
                "Name each function once, push and publish again",
            )
        if function not in names:
            raise self._calls.failed(
                "UNKNOWN_FUNCTION",
                f"the component has no function {function!r}; it has {', '.join(names) or 'none'}",
                "Correct the step's function, or the component's manifest, and publish again",
            )
        return ComponentFacts(answer.sdk, answer.interpreter)

    async def initialise(
        self,
        plan: DeploymentPlan,
        step: StepPlan,
        instance: str,
        *,
        spans: bool = False,
        credential: ClearCredential = NO_CREDENTIAL,
        dry_run: bool = False,
    ) -> None:
        """Runs the component's init hook with the step's configuration and credential."""
        from headrace.api.component.v1 import component_pb2

        request = component_pb2.InitRequest(
            function=step.function,
            config_json=json.dumps(step.config),
            step=identity_of(plan, step, instance),
            spans_wanted=spans,
            dry_run=dry_run,
            credentials_json=credential.text,
            credentials_version=credential.version,
        )
        await self._calls.call("INIT", self._stub.Init, request, INIT_LIMIT_S)
        self.credentials_version = credential.version

    async def ask(self, method: str, request: Any, limit_s: float) -> Any:
        """The answer of a method of the contract that components need not have: ComponentFailed NOT_OFFERED then."""
        import grpc

        what = method.upper()
        try:
            return await self._calls.call(what, getattr(self._stub, method), request, limit_s)
        except ComponentFailed as error:
            cause = error.__cause__
            if isinstance(cause, grpc.aio.AioRpcError) and cause.code() is grpc.StatusCode.UNIMPLEMENTED:
                words = cause.details() or "the component does not have it"
                raise ComponentFailed(self._logs.mask.known(words), reason="NOT_OFFERED") from error
            raise

    async def update_credentials(self, credential: ClearCredential) -> None:
        """Hands over a new value; ComponentFailed CREDENTIAL_REFUSED where the component keeps the old one."""
        from headrace.api.component.v1 import component_pb2

        request = component_pb2.UpdateCredentialsRequest(
            credentials_json=credential.text, credentials_version=credential.version
        )
        try:
            answer = await self.ask("UpdateCredentials", request, UPDATE_LIMIT_S)
        except ComponentFailed as error:
            if error.reason == "NOT_OFFERED":
                raise ComponentFailed(
                    "the component takes credentials only when it starts",
                    reason="CREDENTIAL_REFUSED",
                    next_step="Restart the flow: headrace flow restart FLOW",
                ) from error
            raise
        if answer.HasField("problem"):
            words = self._logs.mask.known(problem_words(answer.problem))
            raise ComponentFailed(words, reason="CREDENTIAL_REFUSED")
        self.credentials_version = credential.version

    async def open_stream(
        self,
        on_events: Callable[[Sequence[Any]], None],
        on_closed: Callable[[Exception], None],
        on_spans: Callable[[Sequence[Any]], None] | None = None,
    ) -> ComponentStream:
        """The Process stream, checked by a ping through it."""
        from headrace.edge.faulty_component_stream import events_with_faults, stream_with_faults

        stream = self._new_stream(events_with_faults(on_events), on_closed, on_spans)
        stream.component_takes_lots = self._takes_lots
        self._stream = stream_with_faults(stream)
        try:
            await stream.start(PING_LIMIT_S)
            await stream.ping(PING_LIMIT_S)
        except (TimeoutError, ConnectionError) as error:
            await self._calls.let_it_exit()
            raise self._calls.failed(
                "SELF_CHECK_FAILED", f"the component did not answer a ping: {error or type(error).__name__}"
            ) from error
        return self._stream

    def _new_stream(
        self,
        on_events: Callable[[Sequence[Any]], None],
        on_closed: Callable[[Exception], None],
        on_spans: Callable[[Sequence[Any]], None] | None,
    ) -> Any:
        if self._own_stream:
            from headrace.edge.http2_component_stream import Http2ComponentStream

            path = str(self._process_socket)
            return Http2ComponentStream(path, on_events=on_events, on_closed=on_closed, on_spans=on_spans)
        from headrace.edge.grpc_component_stream import GrpcComponentStream

        assert self._channel is not None
        return GrpcComponentStream(self._channel, on_events=on_events, on_closed=on_closed, on_spans=on_spans)

    def listen(self) -> Any:
        """A new Listen call (grpc.aio stream-stream)."""
        return self._stub.Listen()

    def transfer(self) -> Any:
        """A new Transfer call (grpc.aio stream-stream)."""
        return self._stub.Transfer()

    async def wait(self) -> str:
        """Until the process is gone; how it ended."""
        status = await self._child.wait()
        self._logs.end()
        return describe_exit(status)

    def kill(self) -> None:
        self._child.kill()

    async def end(self, grace_s: float = END_GRACE_S) -> None:
        """Shutdown call, then SIGTERM, then SIGKILL to its group; returns when nothing of it is left."""
        if self.running and self._stub is not None:
            from headrace.api.component.v1 import component_pb2

            with contextlib.suppress(Exception):
                if self._stream is not None:
                    await self._stream.close(min(grace_s, 0.5))
                await self._stub.Shutdown(component_pb2.ShutdownRequest(reason="shutdown"), timeout=grace_s)
                async with asyncio.timeout(grace_s):
                    await self._child.wait()
        elif self._stream is not None:
            with contextlib.suppress(Exception):
                await self._stream.close(0.1)
        if self._channel is not None:
            await self._channel.close()
        await self._child.end(grace_s)
        with contextlib.suppress(TimeoutError):
            await end_adopted()  # what left its group and session, too
        self._logs.end()
        self._socket.unlink(missing_ok=True)
        process_socket(self._socket).unlink(missing_ok=True)
        stacks_file(self._socket).unlink(missing_ok=True)

    async def stacks(self) -> sidecar_pb2.ComponentStacks:
        """Where its calls and threads stand; within a second, whatever it does."""
        if self._stub is None or not self.running:
            return sidecar_stacks("", [], "the component does not serve yet" if self.running else "it is gone")
        return await stacks_of(self.pid, self._stub, self._socket, self._stack_signal)


def identity_of(plan: DeploymentPlan, step: StepPlan, instance: str) -> Any:
    """Who a component is, as the contract says it (StepIdentity)."""
    from headrace.api.component.v1 import component_pb2

    return component_pb2.StepIdentity(
        workspace=plan.workspace,
        flow=plan.flow,
        step=step.name,
        version=plan.version,
        deployment=plan.deployment,
        component=step.pin.component,
        revision=step.pin.digest,
        instance=instance,
    )


def problem_words(problem: Any) -> str:
    """A HookProblem as people read it: `the shop is closed (ConnectionError, component.py:42)`."""
    kind = problem.kind if problem.kind != problem.message else ""
    about = ", ".join(part for part in (kind, problem.where) if part)
    return f"{problem.message} ({about})" if about else str(problem.message)
