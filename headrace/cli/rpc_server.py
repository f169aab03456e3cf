"""Any method of any server that has reflection: finds it by name, calls it, without generated code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from headrace.cli.rpc_describe import Describer
from headrace.edge.grpc_channel import open_blocking_channel
from headrace.model.errors import InvalidInput, NotFound

REFLECTION_LIMIT_S = 10.0


class _Deadline(grpc.StreamStreamClientInterceptor):  # type: ignore[type-arg]
    """Reflection's own calls have none."""

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        details = client_call_details
        if details.timeout is None and "ServerReflection" in details.method:
            details = details._replace(timeout=REFLECTION_LIMIT_S)
        return continuation(details, request_iterator)


class RpcServer:
    """Use it as a context manager. grpc.RpcError for what the server refuses or when it does not answer."""

    def __init__(self, address: str) -> None:
        self._channel = open_blocking_channel(address)
        self._database = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(self._channel, _Deadline()))
        self._pool = descriptor_pool.DescriptorPool(self._database)

    def __enter__(self) -> RpcServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def services(self) -> list[str]:
        return sorted(self._database.get_services())

    def methods(self, service: str) -> list[str]:
        """`pkg.Service.Method`, sorted; NotFound for an unknown service."""
        found = self._service(service)
        if found is None:
            raise NotFound(f'Failed to list methods for service "{service}": Symbol not found: {service}')
        return sorted(method.full_name for method in found.methods)

    def describe(self, symbol: str) -> str:
        """As proto text; NotFound for an unknown symbol."""
        wanted = symbol.lstrip(".").replace("/", ".")
        try:
            file: FileDescriptorProto = self._database.FindFileContainingSymbol(wanted)
            return Describer(file).describe(wanted)
        except KeyError:
            raise NotFound(f'Failed to resolve symbol "{symbol}": Symbol not found: {symbol}') from None

    def find_method(self, name: str) -> Any:
        """Of `pkg.Service/Method` or `pkg.Service.Method`; the package, and where only one service has such a method
        also the service, may be left out. NotFound says what is missing."""
        service, _, method = name.replace("/", ".").rpartition(".")
        candidates = [one for one in self.services() if one == service] or [
            one for one in self.services() if f".{one}".endswith(f".{service}") or not service
        ]
        found = [(one, self._service(one)) for one in candidates]
        methods = [known.methods_by_name[method] for _, known in found if known and method in known.methods_by_name]
        if len(methods) == 1:
            return methods[0]
        if methods:
            several = ", ".join(one.full_name for one in methods)
            raise InvalidInput.at("method", name, f"may be one of {several}", next_step="Write its service too")
        if candidates and service:
            reason = f'service "{candidates[0]}" does not include a method named "{method}"'
            raise NotFound(reason, next_step=f"List them: headrace rpc list {candidates[0]}")
        raise NotFound(
            f'target server does not expose service "{service or name}"', next_step="List them: headrace rpc list"
        )

    def new_message(self, name: str) -> Message | None:
        """An empty message of that full name; None where the server does not know it."""
        try:
            return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))()
        except KeyError:
            return None

    def call(
        self, method: Any, requests: Sequence[Message], metadata: Sequence[tuple[str, str]], limit_s: float | None
    ) -> Iterator[Message]:
        """The answers, as they come."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        answer = message_factory.GetMessageClass(method.output_type)
        encode, decode = (lambda message: message.SerializeToString()), answer.FromString
        options: dict[str, Any] = {"timeout": limit_s, "metadata": metadata}
        channel: Any = self._channel
        if method.client_streaming and method.server_streaming:
            yield from channel.stream_stream(path, encode, decode)(iter(requests), **options)
        elif method.client_streaming:
            yield channel.stream_unary(path, encode, decode)(iter(requests), **options)
        elif method.server_streaming:
            yield from channel.unary_stream(path, encode, decode)(requests[0], **options)
        else:
            yield channel.unary_unary(path, encode, decode)(requests[0], **options)

    def parse_requests(self, method: Any, text: str) -> list[Message]:
        """One JSON value per message (one empty message for no text); InvalidInput names what does not fit."""
        decoder, rest = json.JSONDecoder(), text.strip()
        found: list[Message] = []
        kind = message_factory.GetMessageClass(method.input_type)
        while rest:
            try:
                value, end = decoder.raw_decode(rest)
                if not isinstance(value, dict):
                    raise TypeError("it is no JSON object")
                found.append(json_format.ParseDict(value, kind(), descriptor_pool=self._pool))
            except (ValueError, json_format.ParseError, TypeError) as error:
                raise InvalidInput(
                    f"the request is not a {method.input_type.full_name}: {error}",
                    reason="BAD_REQUEST",
                    next_step=f"See its fields: headrace rpc describe {method.input_type.full_name}",
                ) from None
            rest = rest[end:].lstrip()
        if not method.client_streaming and len(found) > 1:
            raise InvalidInput(f"{method.full_name} takes one message, not {len(found)}", reason="BAD_REQUEST")
        return found or ([] if method.client_streaming else [kind()])

    def _service(self, name: str) -> Any:
        try:
            return self._pool.FindServiceByName(name)
        except KeyError:
            return None
