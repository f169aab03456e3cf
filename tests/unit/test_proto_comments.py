"""The protos are what grpcurl users read: everything in them has a comment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parents[2]
# Field numbers of FileDescriptorProto, DescriptorProto, EnumDescriptorProto and ServiceDescriptorProto: how the path
# of a comment is made.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
FIELDS, NESTED, NESTED_ENUMS, ONEOFS = 2, 3, 4, 8
VALUES = METHODS = 2
Path_ = tuple[int, ...]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    target = tmp_path_factory.mktemp("protos") / "protos.binpb"
    command = [sys.executable, str(ROOT / "tools" / "generate_stubs.py"), "--descriptor", str(target)]
    subprocess.run(command, check=True, timeout=50)
    found = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    return [file for file in found.file if file.package.startswith("headrace.")]


def elements(file: Any) -> Iterator[tuple[str, Path_]]:
    """Name and path of everything in a proto file."""
    for index, service in enumerate(file.service):
        yield service.name, (SERVICES, index)
        for number, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (SERVICES, index, METHODS, number)
    for index, message in enumerate(file.message_type):
        yield from of_message(message, message.name, (MESSAGES, index))
    for index, enum in enumerate(file.enum_type):
        yield from of_enum(enum, (ENUMS, index))


def of_message(message: Any, name: str, path: Path_) -> Iterator[tuple[str, Path_]]:
    if message.options.map_entry:
        return
    yield name, path
    for index, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*path, FIELDS, index)
    for index, oneof in enumerate(message.oneof_decl):
        if not oneof.name.startswith("_"):  # that is how protoc writes `optional` down
            yield f"{name}.{oneof.name}", (*path, ONEOFS, index)
    for index, nested in enumerate(message.nested_type):
        yield from of_message(nested, f"{name}.{nested.name}", (*path, NESTED, index))
    for index, enum in enumerate(message.enum_type):
        yield from of_enum(enum, (*path, NESTED_ENUMS, index))


def of_enum(enum: Any, path: Path_) -> Iterator[tuple[str, Path_]]:
    yield enum.name, path
    for index, value in enumerate(enum.value):
        yield value.name, (*path, VALUES, index)


def test_everything_has_a_comment(files: list[Any]) -> None:
    missing, seen = [], 0
    for file in files:
        places = file.source_code_info.location
        comments = {tuple(place.path): place.leading_comments + place.trailing_comments for place in places}
        for name, path in elements(file):
            seen += 1
            if not comments.get(path, "").strip():
                missing.append(f"{file.name}: {name}")
    assert not missing, "write a comment, which grpcurl users can act on, for " + ", ".join(missing)
    assert seen > 900


def test_every_comment_is_a_sentence(files: list[Any]) -> None:
    """Complete sentences: they become the API reference."""
    loose = []
    for file in files:
        names = {path: name for name, path in elements(file)}
        for place in file.source_code_info.location:
            text = place.leading_comments.strip()
            if tuple(place.path) in names and text and text[-1] not in ".:)`":
                loose.append(f"{file.name}: {names[tuple(place.path)]}: {text[-60:]!r}")
    assert not loose, "\n".join(loose)
