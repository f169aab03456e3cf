"""Which modules `make fast` compiles, and what mypyc would make wrong of a module without saying so."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

MODULES = (
    # NATS: the protocol, the connection, the lane
    "headrace.wire.nats_protocol",
    "headrace.wire.jetstream",
    "headrace.edge.checked_subjects",
    "headrace.edge.gathered_writes",
    "headrace.edge.jetstream_lane",
    "headrace.edge.lane_acks",
    "headrace.edge.lane_publishes",
    "headrace.edge.nats_link",
    "headrace.edge.nats_session",
    "headrace.edge.open_pulls",
    "headrace.edge.pull_consumption",
    "headrace.edge.sweep_timer",
    # the component stream, at both ends of it
    "headrace.wire.http2_connection",
    "headrace.wire.http2_frames",
    "headrace.wire.http2_header_block",
    "headrace.wire.http2_headers",
    "headrace.wire.http2_stream",
    "headrace.edge.http2_transport",
    # a message's way through the sidecar
    "headrace.model.message_ids",
    "headrace.wire.spliced_envelope",
    "services.sidecar.call_dispatch",
    "services.sidecar.call_events",
    "services.sidecar.careful_start",
    "services.sidecar.closing",
    "services.sidecar.delivery_loop",
    "services.sidecar.event_reader",
    "services.sidecar.input_path",
    "services.sidecar.liveness",
    "services.sidecar.outbox",
    "services.sidecar.outputs",
    "services.sidecar.plain_rows",
    "services.sidecar.row_edge",
    "services.sidecar.settlement",
    "services.sidecar.stimulus_filing",
    "services.sidecar.domain.edge_window",
    "services.sidecar.domain.ended_calls",
    "services.sidecar.domain.sender_memory",
    "services.sidecar.domain.sidecar_deaths",
    # its hop record
    "headrace.edge.clock_pair",
    "headrace.edge.hop_recorder",
    "headrace.edge.span_log",
    "headrace.edge.trace_keeper",
    "headrace.model.histogram",
    "headrace.model.recent_executions",
    "headrace.model.record_lot",
    "headrace.model.trace_context",
    "headrace.wire.otlp_common_hop",
    "headrace.wire.otlp_fields",
    "services.sidecar.hop_phases",
    "services.sidecar.hop_tally",
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


def stranded(root: Path, modules: Sequence[str], packages: Sequence[str] = ("headrace", "services")) -> Iterator[str]:
    """Classes of modules that are not compiled whose base is of one that is: they cannot even be defined."""
    listed = {root / (name.replace(".", "/") + ".py") for name in modules}
    for path in sorted(path for package in packages for path in (root / package).rglob("*.py")):
        text = path.read_text()
        if path in listed or "class " not in text or not any(name in text for name in modules):
            continue
        tree = ast.parse(text)
        taken = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module in modules
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and (bases := taken & {ast.unparse(base) for base in node.bases}):
                yield f"{path.relative_to(root)}: {node.name} is not compiled and its base {bases.pop()} is"


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
