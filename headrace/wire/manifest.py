"""Manifest and bundle facts between the model and registry/v1."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.api.component.v1 import component_pb2
from headrace.api.registry.v1 import registry_pb2
from headrace.model.manifest import FunctionKind, FunctionManifest, Manifest

_KIND_TO_PROTO: dict[FunctionKind, component_pb2.FunctionKind.ValueType] = {
    "action": component_pb2.FUNCTION_KIND_ACTION,
    "trigger": component_pb2.FUNCTION_KIND_TRIGGER,
    "listener": component_pb2.FUNCTION_KIND_LISTENER,
}
_KIND_FROM_PROTO = {number: kind for kind, number in _KIND_TO_PROTO.items()}


def kind_to_proto(kind: FunctionKind) -> component_pb2.FunctionKind.ValueType:
    return _KIND_TO_PROTO[kind]


def kind_from_proto(kind: int) -> FunctionKind:
    """ValueError for a number that is no kind."""
    for number, name in _KIND_FROM_PROTO.items():
        if number == kind:
            return name
    raise ValueError(f"not a function kind: {kind}")


def manifest_to_proto(manifest: Manifest) -> registry_pb2.Manifest:
    return registry_pb2.Manifest(
        component=manifest.component,
        title=manifest.title,
        description=manifest.description,
        version=manifest.version,
        language=manifest.language,
        entrypoint=manifest.entrypoint,
        functions=[_function_to_proto(function) for function in manifest.functions],
        requirements=manifest.requirements,
    )


def manifest_from_proto(message: registry_pb2.Manifest) -> Manifest:
    """The other way; trusts the registry, which checked it. ValueError for an unknown function kind."""
    return Manifest(
        component=message.component,
        title=message.title,
        description=message.description,
        version=message.version,
        language=message.language,
        entrypoint=message.entrypoint,
        functions=tuple(_function_from_proto(function) for function in message.functions),
        requirements=tuple(message.requirements),
    )


def _function_to_proto(function: FunctionManifest) -> registry_pb2.Function:
    return registry_pb2.Function(
        name=function.name,
        kind=kind_to_proto(function.kind),
        title=function.title,
        description=function.description,
        config_schema_json=_schema_text(function.config_schema),
        in_schema_json=_schema_text(function.in_schema),
        out_schema_json=_schema_text(function.out_schema),
        exclusive=function.exclusive,
    )


def _function_from_proto(message: registry_pb2.Function) -> FunctionManifest:
    return FunctionManifest(
        name=message.name,
        kind=kind_from_proto(message.kind),
        title=message.title,
        description=message.description,
        config_schema=_schema_value(message.config_schema_json),
        in_schema=_schema_value(message.in_schema_json),
        out_schema=_schema_value(message.out_schema_json),
        exclusive=message.exclusive,
    )


def _schema_text(schema: dict[str, Any] | None) -> str:
    return "" if schema is None else msgspec.json.encode(schema).decode()


def _schema_value(text: str) -> dict[str, Any] | None:
    return msgspec.json.decode(text, type=dict[str, Any]) if text else None
