"""The command that a person types to see a flow answer, with a body that fits its first typed function."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from headrace.model.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.api.flow.v1 import flow_pb2
    from headrace.client import AsyncClient
    from headrace.wire.flow_file import FlowFile

MOST_NESTING = 6


async def sample_call(client: AsyncClient, file: FlowFile, status: flow_pb2.FlowStatus) -> str:
    """`curl -d '{"name": "..."}' http://...`; empty for a flow without a webhook."""
    if not status.webhook_url:
        return ""
    body = sample_of(await _input_schema(client, file, status))
    return f"curl -d {shlex.quote(json.dumps(body, ensure_ascii=False))} {status.webhook_url}"


async def _input_schema(client: AsyncClient, file: FlowFile, status: flow_pb2.FlowStatus) -> Any:
    """Of the trigger, or else of the first step after it that says what it takes; {} where none does."""
    steps = {step.name: step for step in file.spec.steps}
    pins = {step.step: step.pin for step in status.steps}
    received = {name for step in steps.values() for name in step.to}
    names = [name for name in steps if name not in received]
    for name in names:
        names += [receiver for receiver in steps[name].to if receiver not in names]
        try:
            revision = await client.get_revision(pins[name].component, pins[name].revision_number)
        except (HeadraceError, KeyError):
            continue
        functions = revision.manifest.functions
        for function in functions:
            if function.in_schema_json and (function.name == steps[name].function or len(functions) == 1):
                return json.loads(function.in_schema_json)
    return {}


def sample_of(schema: Any, whole: Any = None, depth: int = 0) -> Any:
    """A small value that a JSON Schema allows, as far as it is simple; what is not required is left out."""
    whole = schema if whole is None else whole
    if not isinstance(schema, dict) or depth > MOST_NESTING:
        return {}
    if "$ref" in schema:
        found: Any = whole
        for part in str(schema["$ref"]).removeprefix("#/").split("/"):
            found = found.get(part, {}) if isinstance(found, dict) else {}
        return sample_of(found, whole, depth + 1)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "examples"):
        if schema.get(key):
            return schema[key][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return sample_of(schema[key][0], whole, depth + 1)
    kind = schema.get("type", "object")
    match kind if isinstance(kind, str) else kind[0]:
        case "string":
            return "..."
        case "integer" | "number":
            return max(1, schema.get("minimum", 1))
        case "boolean":
            return True
        case "array":
            return [sample_of(schema.get("items", {}), whole, depth + 1)] if schema.get("minItems") else []
        case "null":
            return None
    properties = schema.get("properties", {})
    return {name: sample_of(properties.get(name, {}), whole, depth + 1) for name in schema.get("required", ())}
