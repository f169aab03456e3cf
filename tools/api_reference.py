"""Writes docs/api.md from the protos and their comments; `--check` only says whether it is up to date.

python -m tools.api_reference
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

from tools.generate_stubs import PROTOS, ROOT, run_protoc
from tools.generated_files import keep

PLACE = ROOT / "docs" / "api.md"
OURS = "headrace.api."
FIRST = ("flow", "registry", "deadletter", "hop")
"""Areas that the API address serves; the others are spoken inside a mesh."""
HEAD = """# API reference

<!-- Made by tools.api_reference from protos/; do not edit by hand. -->

`headrace status` shows the API's address; [grpcurl.md](grpcurl.md) walks through it. Long-running verbs answer a
`google.longrunning.Operation`; every error carries a `google.rpc.ErrorInfo`. Names in JSON are those shown here, and
also their camelCase forms. 64-bit numbers are text in JSON, bytes are base64, durations `"1.5s"`.
"""
_PACKAGE, _MESSAGE, _ENUM, _SERVICE = 2, 4, 5, 6
_FIELD, _VALUE, _METHOD = 2, 2, 2
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in _Field.Type.items()
    if name not in ("TYPE_MESSAGE", "TYPE_ENUM", "TYPE_GROUP")
}


def read_protos() -> list[Any]:
    """FileDescriptorProtos of our own files with their comments; those of the API address first."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "protos.binpb"
        files = [str(file) for file in sorted(PROTOS.rglob("*.proto"))]
        run_protoc(["--include_source_info", f"--descriptor_set_out={target}", *files])
        found = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file
    order = {f"{OURS}{area}.v1": number for number, area in enumerate(FIRST)}
    return sorted(found, key=lambda file: (order.get(file.package, len(order)), file.package))


def render(files: list[Any]) -> str:
    """The whole document."""
    anchors = _anchors(files)
    lines = [*HEAD.splitlines(), ""]
    lines += [f"- [{_title(file)}](#{anchors[file.package]})" for file in files]
    for file in files:
        lines += _Page(file, anchors).lines()
    return "\n".join(lines) + "\n"


def _title(file: Any) -> str:
    served = file.package.removeprefix(OURS).partition(".")[0] in FIRST
    return str(file.package) if served else f"{file.package} (inside a mesh)"


def _anchors(files: list[Any]) -> dict[str, str]:
    """Full name to the anchor that GitHub makes of its heading: the second of equal ones gets `-1`."""
    found: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for file in files:
        parts = [*file.service, *file.message_type, *file.enum_type]
        for name, heading in [
            (file.package, _title(file)),
            *((f"{file.package}.{part.name}", part.name) for part in parts),
        ]:
            plain = "".join(letter for letter in heading.lower() if letter.isalnum() or letter in "-_ ").replace(
                " ", "-"
            )
            found[name] = f"{plain}-{seen[plain]}" if seen[plain] else plain
            seen[plain] += 1
    return found


class _Page:
    """The section of one file."""

    def __init__(self, file: Any, anchors: dict[str, str]) -> None:
        self._file = file
        self._anchors = anchors
        self._comments = {
            tuple(place.path): " ".join((place.leading_comments or place.trailing_comments).split()).replace("|", "\\|")
            for place in file.source_code_info.location
        }

    def lines(self) -> Iterator[str]:
        file = self._file
        yield from ("", f"## {_title(file)}", "", f"`protos/{file.name}`. {self._said(_PACKAGE)}".rstrip())
        for number, service in enumerate(file.service):
            yield from self._head(service.name, "method | takes | answers", _SERVICE, number)
            for index, method in enumerate(service.method):
                takes = ("stream of " if method.client_streaming else "") + self._link(method.input_type)
                gives = ("stream of " if method.server_streaming else "") + self._link(method.output_type)
                yield f"| `{method.name}` | {takes} | {gives} | {self._said(_SERVICE, number, _METHOD, index)} |"
        for number, message in enumerate(file.message_type):
            yield from self._message(message, number)
        for number, enum in enumerate(file.enum_type):
            yield from self._head(enum.name, "value | number", _ENUM, number)
            for index, value in enumerate(enum.value):
                yield f"| `{value.name}` | {value.number} | {self._said(_ENUM, number, _VALUE, index)} |"

    def _said(self, *path: int) -> str:
        return self._comments.get(path, "")

    def _head(self, name: str, columns: str, *path: int) -> Iterator[str]:
        """Heading, comment, and the table's head where there are columns."""
        yield from ("", f"### {name}", "")
        if said := self._said(*path):
            yield from (said, "")
        if columns:
            yield from (f"| {columns} | |", "|---" * (columns.count("|") + 2) + "|")

    def _message(self, message: Any, number: int) -> Iterator[str]:
        maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        assert len(maps) == len(message.nested_type), f"{message.name}: nested messages are not rendered"
        yield from self._head(message.name, "field | type" if message.field else "", _MESSAGE, number)
        if not message.field:
            yield "No fields."
        for index, field in enumerate(message.field):
            entry = maps.get(field.type_name.rpartition(".")[2])
            if entry is not None:
                kind = f"map of {self._type(entry.field[0])} to {self._type(entry.field[1])}"
            else:
                kind = ("list of " if field.label == _Field.LABEL_REPEATED else "") + self._type(field)
            if field.HasField("oneof_index") and not field.proto3_optional:
                kind += f", one of `{message.oneof_decl[field.oneof_index].name}`"
            yield f"| `{field.name}` | {kind} | {self._said(_MESSAGE, number, _FIELD, index)} |"

    def _type(self, field: Any) -> str:
        return _SCALARS.get(field.type) or self._link(field.type_name)

    def _link(self, full_name: str) -> str:
        """A name of our own is a link, with its area where that is another one; Google's stay as they are."""
        name = full_name.lstrip(".")
        owner, _, short = name.rpartition(".")
        if name not in self._anchors:
            return f"`{name}`"
        shown = short if owner == self._file.package else f"{owner.removeprefix(OURS).partition('.')[0]}.{short}"
        return f"[{shown}](#{self._anchors[name]})"


if __name__ == "__main__":
    sys.exit(keep(__doc__, "python -m tools.api_reference", lambda: {PLACE: render(read_protos())}))
