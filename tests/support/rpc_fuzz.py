"""Random calls of every method that an address tells of by reflection: requests that are nearly right, and far from it.

What the mesh answers (names, etags, tokens) is said to it again, so that the calls reach what is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor as Field
from google.rpc import error_details_pb2
from grpc._cython import cygrpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from headrace.edge.grpc_channel import open_channel
from tests.support.fuzz import fill, mutated, scalar, text

PATIENCE_S = 1.5
WATCH_S = 0.15
CALLS_AT_ONCE = 6
MOST_WORDS = 60
NUMBERS = ("0", "1", "1", "1", "2", "-1", "²", "٣", "01", "1.5", "9" * 19, "18446744073709551616", "9" * 5000, "")
FLOWS, COMPONENTS = ("flows/victim", "flows/victim", "flows/other"), ("components/bench-opaque",)
ODD_NAMES = ("flows", "flows/", "flows/-", "components/-", "operations/", "flows/*", "flows/>", "flows/a.b", "flows/ä")
RESOURCES = {
    "Version": [f"{FLOWS[0]}/versions/{number}" for number in NUMBERS],
    "Versions": FLOWS,
    "Revisions": (*COMPONENTS, "components/-"),
    "Component": COMPONENTS,
    "Revision": [f"{COMPONENTS[0]}/revisions/{number}" for number in NUMBERS],
    "Drain": [f"{FLOWS[0]}/deployments/{number}" for number in NUMBERS],
    "DeadLetter": [f"{FLOWS[0]}/deadLetters/{number}" for number in NUMBERS],
    "Operation": ("operations/start-victim-1", "operations/²", "operations/a.b"),
}
"""Names that requests whose type has such a word before `Request` take; all others take FLOWS."""
SAID = {
    "flow_id": ("victim", "other", "Victim", "a" * 40, "a" * 41),
    "component": ("bench-opaque", "bench-opaque@1", "bench-opaque@latest", "bench-opaque@²", "bench-opaque@", "@"),
    "function": ("start", "relay", "answer", "refuse"),
    "to": ("start", "answer"),
    "step": ("start", "answer"),
    "headrace.api.flow.v1.Step.name": ("start", "answer"),
    "key": ("header:x", "body:/a", "body:/a/~1b", "header:", "body:"),
    "on": ("TIMEOUT", "BUSY"),
    "reference": ("bench-opaque", "bench-opaque@1", "bench-opaque@" + "9" * 5000, "bench-opaque@²"),
    "page_token": ("MQ==", "====", "é", "YQ", "a" * 3000),
    "content_type": ("application/json", "text/plain\r\nx: y", "\x00"),
}
SPEC = {
    "type": "FLOW_TYPE_REALTIME",
    "reply_timeout": "2s",
    "steps": [
        {"name": "start", "component": "bench-opaque", "function": "start", "to": ["answer"]},
        {"name": "answer", "component": "bench-opaque", "function": "answer"},
    ],
}
MAKING = frozenset({"CreateFlow", "PublishFlow", "StartFlow"})
ENDING = ("Delete", "Purge")
SILENT = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNIMPLEMENTED})
"""May come from gRPC itself, without details."""
FAILURES = frozenset(
    {
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)
TRANSIENT = frozenset({"INGRESS_CLOSED"})
"""Reasons of UNAVAILABLE that say truly that the next moment is better: a flow is just being started."""
CUT = "Internal error from Core"
"""What grpcio's client says where the server ended a stream that it was still writing; it drops the status."""
LEAKS = ("Traceback", 'File "', "Error(", "object at 0x", "Exception")


def methods_of(target: str) -> list[Any]:
    """Descriptors of all methods of all services at an address, as reflection gives them."""
    with grpc.insecure_channel(target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = descriptor_pool.DescriptorPool(database)
        services = [pool.FindServiceByName(name) for name in sorted(database.get_services())]
        return [method for service in services for method in service.methods]


class RequestMaker:
    """Requests for any method. `spared` is a word that no request contains: what must live on."""

    def __init__(self, rng: random.Random, spared: str) -> None:
        self.rng = rng
        self._spared = spared
        self._heard: dict[str, list[str]] = {}

    def raw(self, method: Any) -> bytes:
        """Serialised; one in six is not what it was any more."""
        rng = self.rng
        message = message_factory.GetMessageClass(method.input_type)()
        fill(message, rng, 4, skip=rng.choice((0.4, 0.8, 0.95)), values=self._value)
        if "spec" in message.DESCRIPTOR.fields_by_name and rng.random() < 0.8:
            json_format.ParseDict(SPEC, message.spec)
            part = rng.choice((message.spec, *message.spec.steps))
            for _ in range(rng.randrange(2)):
                fill(part, rng, 1, skip=0.9, values=self._value)
        self._set_names(message)
        _tame(message)
        raw = bytes(message.SerializeToString())
        if rng.random() < 0.05:
            return raw + bytes([0xFA, 0x3F, 3]) + b"abc"  # a field that is not known: 1023
        return mutated(raw, rng) if rng.random() < 0.12 else raw

    def hear(self, message: Any) -> None:
        """Keeps the texts of an answer, to say them again under the same name."""
        for field, value in message.ListFields():
            if field.type == Field.TYPE_STRING:
                for said in value if field.is_repeated else (value,):
                    words = self._heard.setdefault(field.name, [])
                    if self._spared not in said and len(said) < 200 and said not in words:
                        words.append(said)
                        del words[: -MOST_WORDS // 2]
            elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
                for part in list(value)[:5] if field.is_repeated else (value,):
                    self.hear(part)

    def _set_names(self, message: Any) -> None:
        """A request without the name that it needs says little: most have one, of the right kind."""
        kind = message.DESCRIPTOR.name.removesuffix("Request")
        known = next((names for word, names in RESOURCES.items() if kind.endswith(word)), FLOWS)
        for field in message.DESCRIPTOR.fields:
            if field.name in ("name", "parent", "flow", "flow_id") and self.rng.random() < 0.9:
                heard = [said for said in self._heard.get(field.name, ()) if said.startswith(known[0].split("/")[0])]
                name = self.rng.choice(heard if heard and self.rng.random() < 0.5 else known)
                setattr(message, field.name, name.removeprefix("flows/") if field.name == "flow_id" else name)

    def _value(self, field: Any, rng: random.Random) -> Any:
        if field.type == Field.TYPE_ENUM and rng.random() < 0.1:
            return rng.choice((-1, 99, 2**31 - 1))
        if field.type != Field.TYPE_STRING:
            return scalar(field, rng)
        if rng.random() < 0.15:
            return text(rng).replace(self._spared, "")
        for known in (SAID.get(field.full_name), SAID.get(field.name)):
            if known and rng.random() < 0.8:
                return rng.choice(known)
        heard = self._heard.get(field.name) or self._heard.get("name") or ()
        if heard and rng.random() < 0.7:
            return rng.choice(heard)
        return rng.choice(ODD_NAMES)


def _tame(message: Any) -> None:
    """Spares the machine: what is asked for is obeyed, so nobody asks for 64 processes or a tick every 10 ms."""
    for field, value in message.ListFields():
        if field.name == "replicas" and not field.is_repeated and 2 < value <= 64:
            message.replicas = 2
        elif field.name == "every":
            value.seconds = max(1, value.seconds)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for part in value if field.is_repeated else (value,):
                _tame(part)


class Caller:
    """Calls the methods of one address. `tried` counts requests per method, `ends` the codes per method; `wrong` are
    answers that no request may get, the last one of each method and code."""

    def __init__(self, target: str, maker: RequestMaker) -> None:
        self._target = target
        self._maker = maker
        self.tried: Counter[str] = Counter()
        self.ends: dict[str, Counter[str]] = {}
        self.wrong: dict[str, str] = {}

    async def call_all(self, methods: list[Any], rounds: int) -> None:
        """`rounds` requests of each method, in any order, some at once; more of those that make something, and
        those that delete it in the last quarter only, so that the others have something to work on."""
        ending = [method for method in methods if method.name.startswith(ENDING)] * rounds
        plan = [method for method in methods if not method.name.startswith(ENDING)] * rounds
        plan += [method for method in methods if method.name in MAKING] * rounds
        self._maker.rng.shuffle(plan)
        last = plan[len(plan) * 3 // 4 :] + ending
        self._maker.rng.shuffle(last)
        work = iter(plan[: len(plan) * 3 // 4] + last)
        async with open_channel(self._target) as channel, asyncio.TaskGroup() as tasks:
            for _ in range(CALLS_AT_ONCE):
                tasks.create_task(self._work(channel, work))

    async def _work(self, channel: grpc.aio.Channel, work: Iterator[Any]) -> None:
        for method in work:
            name = f"{method.containing_service.full_name}/{method.name}"
            requests = [self._maker.raw(method)]
            if method.client_streaming:
                requests = [self._maker.raw(method) for _ in range(self._maker.rng.randrange(5))]
            self.tried[name] += 1
            try:
                await self._call(channel, method, name, requests)
                code = "OK"
            except grpc.aio.AioRpcError as error:
                code = "CUT" if error.details() == CUT else error.code().name
                if problem := _problem(error, ours=not name.startswith("grpc.")):
                    self.wrong[f"{name} {code}"] = f"{name}({repr(requests)[:1500]}): {code}: {problem}"
            except asyncio.CancelledError:
                if task_is_cancelled():
                    raise
                code = "CANCELLED"
            self.ends.setdefault(name, Counter())[code] += 1

    async def _call(self, channel: grpc.aio.Channel, method: Any, name: str, requests: list[bytes]) -> None:
        rng = self._maker.rng
        kind = message_factory.GetMessageClass(method.output_type)
        user = rng.choice(("ada", "x" * 3000, "%00", ""))
        metadata = (("headrace-user", user),) if rng.random() < 0.1 else ()
        path = f"/{name}"
        if method.client_streaming:
            make = channel.stream_stream if method.server_streaming else channel.stream_unary
            call: Any = make(path)(timeout=PATIENCE_S, metadata=metadata)
            # Where it was refused before it was said whole, grpcio's client says so in one of these two ways.
            with contextlib.suppress(asyncio.InvalidStateError, cygrpc.ExecuteBatchError):
                for request in requests:
                    await call.write(request)
                if rng.random() < 0.4:
                    call.cancel()  # broken off
                    return
                await call.done_writing()
            self._maker.hear(kind.FromString(await call)) if not method.server_streaming else await _drained(call)
        elif method.server_streaming:
            await _drained(channel.unary_stream(path)(requests[0], timeout=PATIENCE_S, metadata=metadata))
        else:
            answer = await channel.unary_unary(path)(requests[0], timeout=PATIENCE_S, metadata=metadata)
            self._maker.hear(kind.FromString(answer))


async def _drained(call: Any) -> None:
    """Reads for a moment, then goes away."""
    try:
        async with asyncio.timeout(WATCH_S):
            while await call.read() is not grpc.aio.EOF:
                pass
    except TimeoutError:
        pass
    finally:
        call.cancel()


def task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _problem(error: grpc.aio.AioRpcError, *, ours: bool) -> str:
    """Why this is no answer to any request; empty when it is one."""
    code, said = error.code(), error.details() or ""
    if said == CUT:
        return ""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    reasons = [_reason(detail) for detail in status.details] if status is not None else []
    if TRANSIENT & {*reasons}:
        return ""
    if code in FAILURES or any(leak in said for leak in LEAKS):
        return said
    if ours and code not in SILENT and not any(reasons):
        return f"without ErrorInfo: {said}"
    return ""


def _reason(detail: Any) -> str:
    info = error_details_pb2.ErrorInfo()
    return info.reason if detail.Unpack(info) else ""
