"""Which modules `make fast` compiles, and what mypyc would make wrong of a module without saying so."""

from __future__ import annotations

import ast
from collections.abc import Iterator

MODULES = (
    # NATS: the protocol, the connection, the lane
    "headrace.wire.nats_protocol",
    "headrace.wire.jetstream",
    "headrace.edge.gathered_writes",
    "headrace.edge.jetstream_lane",
    "headrace.edge.lane_acks",
    "headrace.edge.lane_publishes",
    "headrace.edge.nats_link",
    "headrace.edge.nats_session",
    "headrace.edge.open_pulls",
    "headrace.edge.pull_consumption",
    "headrace.edge.sweep_timer",
    # the component stream
    "headrace.wire.http2_connection",
    "headrace.wire.http2_frames",
    "headrace.wire.http2_header_block",
    "headrace.wire.http2_headers",
    "headrace.wire.http2_stream",
    "headrace.edge.http2_transport",
    # a message's way through the sidecar
    "headrace.wire.spliced_envelope",
    "headrace.model.message_ids",
    "services.sidecar.call_dispatch",
    "services.sidecar.call_events",
    "services.sidecar.careful_start",
    "services.sidecar.closing",
    "services.sidecar.delivery_loop",
    "services.sidecar.input_path",
    "services.sidecar.liveness",
    "services.sidecar.outbox",
    "services.sidecar.outputs",
    "services.sidecar.settlement",
    "services.sidecar.domain.edge_window",
    "services.sidecar.domain.ended_calls",
    "services.sidecar.domain.sender_memory",
    "services.sidecar.domain.sidecar_deaths",
    "services.sidecar.plain_rows",
    "services.sidecar.row_edge",
    "headrace.wire.envelope",
    # its hop record
    "headrace.edge.clock_pair",
    "headrace.edge.hop_recorder",
    "headrace.edge.span_log",
    "headrace.edge.trace_keeper",
    "headrace.model.histogram",
    "headrace.model.recent_executions",
    "headrace.model.trace_context",
    "services.sidecar.hop_phases",
)


_OF_C = ("_thread", "_asm", "_inline", "_volatile", "_const", "_signed", "_typeof", "_restrict", "_attribute", "_real")


def unfit(source: str) -> Iterator[str]:
    """What is compiled to something else than it says, found by looking at the source."""
    tree = ast.parse(source)
    decodes = any(
        isinstance(node, ast.Attribute) and node.attr in ("Decoder", "decode", "convert")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and "msgspec" in ast.unparse(node)
    )
    for node in ast.walk(tree):
        if decodes and isinstance(node, ast.ClassDef) and any(_ends_in(base, "Struct") for base in node.bases):
            yield from _lost_annotations(node)
        if isinstance(node, ast.Attribute) and node.attr in _OF_C:
            yield f"line {node.lineno}: C takes `{node.attr}` for a word of its own"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _caught_twice(node)


def _lost_annotations(node: ast.ClassDef) -> Iterator[str]:
    """mypyc keeps no annotation of a Struct that is more than a built-in class: msgspec would decode into nothing."""
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and not (
            isinstance(field.annotation, ast.Name) and field.annotation.id in ("int", "str", "bytes", "bool", "float")
        ):
            yield f"line {field.lineno}: {node.name} is decoded, so it is to be in a module that is not compiled"
            return


def _caught_twice(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """A name of two `except` clauses gets the first one's type: the second raises a TypeError."""
    caught: dict[str, str] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.ExceptHandler) and node.name and node.type is not None:
            kind = ast.unparse(node.type)
            if caught.setdefault(node.name, kind) != kind:
                yield f"line {node.lineno}: `{node.name}` is {caught[node.name]} in another clause of the function"


def _ends_in(node: ast.expr, name: str) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == name) or (isinstance(node, ast.Name) and node.id == name)
