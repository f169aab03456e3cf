"""Services, messages and enums as proto text, comments included: what `grpcurl describe` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_FIELDS, _NESTED, _NESTED_ENUMS, _ONEOFS = 2, 3, 4, 8
_METHODS = _VALUES = 2
_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}

_Item = TypeVar("_Item")
_KINDS = {
    "service": "a service",
    "method": "a method",
    "message": "a message",
    "enum": "an enum",
    "entry": "the entry type for a map field",
}

Path = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """The field that a generated map entry belongs to, and its message."""

    field: FieldDescriptorProto
    message: DescriptorProto


class Describer:
    """Prints the symbols of one file."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments: dict[Path, str] = {
            tuple(place.path): place.leading_comments
            for place in file.source_code_info.location
            if place.leading_comments
        }

    def describe(self, symbol: str) -> str:
        """`<symbol> is a service:` and its text; KeyError where the file has no such symbol."""
        found = self._symbols().get(symbol)
        if found is None:
            raise KeyError(symbol)
        kind, path, what = found
        return f"{symbol} is {_KINDS[kind]}:\n" + "\n".join(self._lines(path, what))

    def symbols(self) -> Sequence[str]:
        return list(self._symbols())

    def _symbols(self) -> Mapping[str, tuple[str, Path, Any]]:
        found: dict[str, tuple[str, Path, Any]] = {}
        package = f"{self._file.package}." if self._file.package else ""

        def message(name: str, path: Path, what: DescriptorProto) -> None:
            found[name] = ("message", path, what)
            for number, field in enumerate(what.field):
                entry = field.type_name.rpartition(".")[2]
                if any(nested.name == entry and nested.options.map_entry for nested in what.nested_type):
                    found[f"{name}.{entry}"] = ("entry", (*path, _FIELDS, number), _Entry(field, what))
            for index, nested in enumerate(what.nested_type):
                if not nested.options.map_entry:
                    message(f"{name}.{nested.name}", (*path, _NESTED, index), nested)
            for index, kind in enumerate(what.enum_type):
                found[f"{name}.{kind.name}"] = ("enum", (*path, _NESTED_ENUMS, index), kind)

        for index, one in enumerate(self._file.message_type):
            message(package + one.name, (_MESSAGES, index), one)
        for index, kind in enumerate(self._file.enum_type):
            found[package + kind.name] = ("enum", (_ENUMS, index), kind)
        for index, service in enumerate(self._file.service):
            found[package + service.name] = ("service", (_SERVICES, index), service)
            for number, method in enumerate(service.method):
                name = f"{package}{service.name}.{method.name}"
                found[name] = ("method", (_SERVICES, index, _METHODS, number), method)
        return found

    def _lines(self, path: Path, what: Any) -> list[str]:
        if isinstance(what, ServiceDescriptorProto):
            body = [
                self._commented((*path, _METHODS, index), [_method(one)]) for index, one in _sorted(what.method, _name)
            ]
            return self._block(path, f"service {what.name} {{", body)
        if isinstance(what, EnumDescriptorProto):
            body = [
                self._commented((*path, _VALUES, index), [f"{value.name} = {value.number};"])
                for index, value in _sorted(what.value, _number)
            ]
            return self._block(path, f"enum {what.name} {{", body)
        if isinstance(what, DescriptorProto):
            return self._block(path, f"message {what.name} {{", self._message_body(path, what))
        if isinstance(what, _Entry):
            return self._commented(path, [_field(what.field, _maps(what.message))])
        return self._commented(path, [_method(what)])

    def _message_body(self, path: Path, message: DescriptorProto) -> list[list[str]]:
        maps = _maps(message)
        body: list[list[str]] = []
        told: set[int] = set()
        for index, field in _sorted(message.field, _number):
            place = (*path, _FIELDS, index)
            if field.HasField("oneof_index") and not field.proto3_optional:
                if field.oneof_index in told:
                    continue
                told.add(field.oneof_index)
                members = [
                    self._commented((*path, _FIELDS, number), [_field(one, maps)])
                    for number, one in _sorted(message.field, _number)
                    if one.HasField("oneof_index") and one.oneof_index == field.oneof_index
                ]
                name = message.oneof_decl[field.oneof_index].name
                body.append(self._block((*path, _ONEOFS, field.oneof_index), f"oneof {name} {{", members))
            else:
                body.append(self._commented(place, [_field(field, maps)]))
        for index, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                body.append(self._lines((*path, _NESTED, index), nested))
        for index, kind in enumerate(message.enum_type):
            body.append(self._lines((*path, _NESTED_ENUMS, index), kind))
        return body

    def _block(self, path: Path, head: str, body: Sequence[Sequence[str]]) -> list[str]:
        lines: list[str] = []
        for element in body:
            lines += [f"  {line}" if line else "" for line in element]
        return self._commented(path, [head, *lines, "}"])

    def _commented(self, path: Path, lines: Sequence[str]) -> list[str]:
        comment = self._comments.get(path, "")
        return [*(f"//{line}" for line in comment.removesuffix("\n").split("\n") if comment), *lines]


def _maps(message: DescriptorProto) -> dict[str, DescriptorProto]:
    return {nested.name: nested for nested in message.nested_type if nested.options.map_entry}


def _name(item: Any) -> str:
    return str(item.name)


def _number(item: Any) -> int:
    return int(item.number)


def _sorted(items: Sequence[_Item], by: Callable[[_Item], Any]) -> list[tuple[int, _Item]]:
    """With their places in the file, at which their comments are known."""
    return sorted(enumerate(items), key=lambda pair: by(pair[1]))


def _method(method: MethodDescriptorProto) -> str:
    taken = ("stream " if method.client_streaming else "") + method.input_type
    given = ("stream " if method.server_streaming else "") + method.output_type
    return f"rpc {method.name} ( {taken} ) returns ( {given} );"


def _field(field: FieldDescriptorProto, maps: Mapping[str, DescriptorProto]) -> str:
    entry = maps.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        key, value = entry.field
        return f"map<{_type(key)}, {_type(value)}> {field.name} = {field.number};"
    label = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    label = "optional " if field.proto3_optional else label
    deprecated = " [deprecated = true]" if field.options.deprecated else ""
    return f"{label}{_type(field)} {field.name} = {field.number}{deprecated};"


def _type(field: FieldDescriptorProto) -> str:
    return field.type_name or _SCALARS[field.type]
