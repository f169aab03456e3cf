"""The component side of component/v1: Handshake, Init, Process, Listen, Shutdown."""

from __future__ import annotations

import asyncio
import gc
import platform
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, NoReturn

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc
import msgspec

from headrace import __version__
from headrace.api.component.v1 import component_pb2, component_pb2_grpc
from headrace.edge.server_reflection import ServerReflection
from headrace.sdk.component import Component
from headrace.sdk.context import StepIdentity, StepScope
from headrace.sdk.credentials import read_credentials
from headrace.sdk.errors import ComponentError, DefinitionError
from headrace.sdk.function import Function
from headrace.sdk.health import COMPONENT, HEALTH, ComponentHealth
from headrace.sdk.hooks import encode_result, run_hook
from headrace.sdk.inquiries import answer_or_refuse, change_credentials, metadata, select_model, verify
from headrace.sdk.listen_stream import ListenStream
from headrace.sdk.log import ComponentLog
from headrace.sdk.process_stream import ProcessStream
from headrace.sdk.stacks import all_stacks
from headrace.sdk.telemetry import TELEMETRY
from headrace.sdk.transfer_stream import TransferStream

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 16 * 1024 * 1024
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    ("grpc.so_reuseport", 0),
    # Sidecars of another version may ping an idle connection; by default that ends it.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
_KINDS = {
    "action": component_pb2.FUNCTION_KIND_ACTION,
    "trigger": component_pb2.FUNCTION_KIND_TRIGGER,
    "listener": component_pb2.FUNCTION_KIND_LISTENER,
}


class ComponentServicer(component_pb2_grpc.ComponentServiceServicer):
    """Serves one component. `stopped` is set once Shutdown was answered."""

    def __init__(self, component: Component, log: ComponentLog) -> None:
        self._component = component
        self._log = log
        self._function: Function | None = None
        self._scope: StepScope | None = None
        self._shut_down = False
        self._stream: ProcessStream | None = None
        self._initialising: Coroutine[Any, Any, Any] | None = None
        self.stack_signal = 0
        """As in HandshakeResponse; set before it serves."""
        self.process_socket = False
        """As in HandshakeResponse; set before it serves."""
        self.stopped = asyncio.Event()

    @property
    def serving(self) -> bool:
        """After Init, until Shutdown."""
        return self._scope is not None and not self._shut_down

    async def Handshake(self, request: Any, context: Any) -> component_pb2.HandshakeResponse:
        if request.protocol_version and request.protocol_version != PROTOCOL_VERSION:
            spoken = f"this SDK speaks component/v1 version {PROTOCOL_VERSION}, not {request.protocol_version}"
            await _refuse(context, spoken)
        answer = component_pb2.HandshakeResponse(
            protocol_version=PROTOCOL_VERSION,
            sdk=f"headrace-python/{__version__}",
            interpreter=f"{platform.python_implementation()} {platform.python_version()}",
            stack_signal=self.stack_signal,
            startup_hook=self._component.startup_hook is not None,
            shutdown_hook=self._component.shutdown_hook is not None,
            process_socket=self.process_socket,
            transfers=True,
            lots=True,
        )
        for function in self._component.functions.values():
            answer.functions.add(
                name=function.name,
                kind=_KINDS[function.kind],
                in_schema_json=_json(function.in_schema),
                out_schema_json=_json(function.out_schema),
            )
        return answer

    async def Init(self, request: component_pb2.InitRequest, context: Any) -> component_pb2.InitResponse:
        if self._scope is not None:
            await _refuse(context, "Init was called before; a process serves one step")
        try:
            function = self._component.function(request.function)
            config = msgspec.json.decode(request.config_json or "{}", type=dict[str, Any])
            credentials = read_credentials(request.credentials_json)
        except DefinitionError as error:
            await _refuse(context, str(error))
        except msgspec.MsgspecError as error:
            await _refuse(context, f"config_json: {error}")
        step = request.step
        identity = StepIdentity(**{name: getattr(step, name) for name in StepIdentity.__dataclass_fields__})
        scope = StepScope(config, identity, asyncio.Event(), self._log, credentials, dry_run=request.dry_run)
        try:
            self._initialising = run_hook(self._component.init_hook, scope)
            await self._initialising
        except (asyncio.CancelledError, SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._log.exception("init failed", error)
            await _refuse(context, f"{type(error).__name__}: {error}"[:2000])
        scope.transfers = TransferStream()
        TELEMETRY.wanted = request.spans_wanted
        TELEMETRY.prepare()
        gc.freeze()  # what is there now stays: looking through all of it would hold up calls for milliseconds
        self._function, self._scope, self._initialising = function, scope, None
        return component_pb2.InitResponse()

    async def UpdateCredentials(self, request: Any, context: Any) -> component_pb2.UpdateCredentialsResponse:
        _, scope = await self._ready(context)
        answer = component_pb2.UpdateCredentialsResponse()
        problem = await change_credentials(self._component, scope, request.credentials_json)
        if problem is not None:
            answer.problem.CopyFrom(problem)
        return answer

    async def Verify(self, request: Any, context: Any) -> component_pb2.VerifyResponse:
        return await answer_or_refuse(verify(self._component, request, self._log), context)

    async def GetMetadata(self, request: Any, context: Any) -> component_pb2.GetMetadataResponse:
        return await answer_or_refuse(metadata(self._component, request, self._log), context)

    async def SelectModel(self, request: Any, context: Any) -> component_pb2.SelectModelResponse:
        return await answer_or_refuse(select_model(self._component, request, self._log), context)

    async def Process(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await self.process(context)

    async def process(self, rpc: Any) -> None:
        """Serves a call of Process, whichever socket it came by; `rpc` reads, writes and aborts as gRPC's context."""
        function, scope = await self._ready(rpc)
        if function.kind == "listener":
            # It is checked by pings and watched through this stream like any other, but calls are refused.
            function = _uncallable(function.name)
        self._stream = ProcessStream(function, scope, rpc)
        await self._stream.run()

    async def Listen(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        function, scope = await self._ready(context)
        if function.kind != "listener":
            await _refuse(context, f"function {function.name!r} is not a listener: call Process")
        scope.draining.clear()
        try:
            await ListenStream(function, scope).run(context)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except BaseException as error:
            self._log.exception("listener failed", error)
            await context.abort(grpc.StatusCode.ABORTED, f"{type(error).__name__}: {error}"[:2000])

    async def Transfer(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        _, scope = await self._ready(context)
        stream = scope.transfers
        if not isinstance(stream, TransferStream) or stream.begun:
            scope.transfers = stream = TransferStream()
        await stream.run(context)

    async def Shutdown(self, request: Any, context: Any) -> component_pb2.ShutdownResponse:
        await self.shut_down()
        self.stopped.set()
        return component_pb2.ShutdownResponse()

    async def Startup(self, request: Any, context: Any) -> component_pb2.StartupResponse:
        _, scope = await self._ready(context)
        try:
            return component_pb2.StartupResponse(
                result_json=encode_result(await run_hook(self._component.startup_hook, scope))
            )
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._log.exception("startup failed", error)
            await _refuse(context, f"{type(error).__name__}: {error}"[:2000])

    async def Conclude(self, request: Any, context: Any) -> component_pb2.ConcludeResponse:
        _, scope = await self._ready(context)
        try:
            result = msgspec.json.decode(request.startup_json or "null")
            await run_hook(self._component.shutdown_hook, replace(scope, startup_result=result))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._log.exception("shutdown failed", error)
            await _refuse(context, f"{type(error).__name__}: {error}"[:2000])
        return component_pb2.ConcludeResponse()

    async def GetStacks(self, request: Any, context: Any) -> component_pb2.GetStacksResponse:
        calls = self._stream.waiting if self._stream is not None else ()
        return all_stacks(calls, self._initialising, request.max_frames)

    async def shut_down(self) -> None:
        """Runs the close hook, once; its failure is only logged."""
        if self._shut_down:
            return
        self._shut_down = True
        scope = self._scope
        if scope is None:
            return
        scope.draining.set()
        try:
            await run_hook(self._component.close_hook, scope)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._log.exception("close failed", error)

    async def _ready(self, context: Any) -> tuple[Function, StepScope]:
        if self._function is None or self._scope is None:
            await _refuse(context, "call Init first")
        return self._function, self._scope


def _uncallable(name: str) -> Function:
    async def refuse() -> None:
        raise ComponentError("NOT_CALLABLE", f"function {name!r} is a listener: call Listen")

    function = Function(name, "action", refuse)
    function.resolve()
    return function


def make_server(servicer: ComponentServicer) -> grpc.aio.Server:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    component_pb2_grpc.add_ComponentServiceServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers(
        (ServerReflection([COMPONENT, HEALTH]), ComponentHealth(lambda: servicer.serving)),
    )
    return server


async def _refuse(context: Any, message: str) -> NoReturn:
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
    raise AssertionError("abort does not return")


def _json(schema: dict[str, Any] | None) -> str:
    return msgspec.json.encode(schema).decode() if schema else ""
