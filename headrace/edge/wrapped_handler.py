"""A gRPC handler around another one: the same kind, the same messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc


def wrapped_handler(
    handler: Any,
    *,
    unary: Callable[[Any], Any],
    stream: Callable[[Any], Any],
    decode: Callable[[bytes], Any] | None = None,
) -> grpc.RpcMethodHandler[Any, Any]:
    """`unary` or `stream` (by what it answers) makes the new function of the old one; `decode` replaces the decoder of
    requests."""
    kind = f"{_word(handler.request_streaming)}_{_word(handler.response_streaming)}"
    wrap = stream if handler.response_streaming else unary
    made: grpc.RpcMethodHandler[Any, Any] = getattr(grpc, f"{kind}_rpc_method_handler")(
        wrap(getattr(handler, kind)), decode or handler.request_deserializer, handler.response_serializer
    )
    return made


def _word(streaming: bool) -> str:
    return "stream" if streaming else "unary"
