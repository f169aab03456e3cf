"""Reads a flow file: YAML text in, FlowSpec and the folders of its own components out.

Every refusal names file, line, column, field and value. The shape is checked here (types, bounds, unknown keys, names
of receivers); what a graph must be (no cycle, one trigger) is said by `FlowFile.check`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from headrace.model.errors import FieldViolation, HeadraceError, InvalidInput, NotFound
from headrace.model.flow_graph import FlowGraph, check_flow
from headrace.model.flow_spec import FlowSpec
from headrace.model.strict_yaml import load_yaml, located
from headrace.wire.flow_reader import FLOW_KEYS, FlowReader

MAX_FLOW_FILE_BYTES = 1024 * 1024
_INDEX = re.compile(r"steps\[(\d+)\](\.name\b)?")


@dataclass(frozen=True, slots=True)
class FlowFile:
    """A flow as its file says it; without `type` it is real-time. `folders` has the steps whose `component` is
    a folder (starts with `.` or `/`), absolute; in `spec` such a step keeps the text as written."""

    name: str
    spec: FlowSpec
    folders: dict[str, Path]
    source: str
    text: str

    def check(self) -> FlowGraph:
        """The flow's graph; InvalidInput with a violation per problem, each with its place."""
        # A folder's component gets its name when it is pushed; for the graph any name does.
        steps = tuple(
            msgspec.structs.replace(step, component="any") if step.name in self.folders else step
            for step in self.spec.steps
        )
        try:
            return check_flow(msgspec.structs.replace(self.spec, steps=steps))
        except InvalidInput as error:
            raise self.located(error) from error

    def located(self, error: HeadraceError) -> HeadraceError:
        """An error about this flow, whoever found it, as one about this file: the mesh counts steps
        (`steps[1].to[0]`), the file names them (`steps.price.to[0]`), and knows where they stand."""
        if not any(_in_flow(violation.field) for violation in error.violations):
            return error
        violations = [
            FieldViolation(self._named(item.field), self._named(item.description)) for item in error.violations
        ]
        named = type(error)(
            self._named(error.message),
            reason=error.reason,
            next_step=error.next_step,
            violations=violations,
            metadata={key: self._named(value) if key == "field" else value for key, value in error.metadata.items()},
        )
        return located(named, self.source, self.text)

    def _named(self, text: str) -> str:
        names = [step.name for step in self.spec.steps]

        def name(match: re.Match[str]) -> str:
            index = int(match[1])
            return f"steps.{names[index]}" if index < len(names) else match[0]

        return _INDEX.sub(name, text)


def _in_flow(field: str) -> bool:
    return re.split(r"[.\[]", field, maxsplit=1)[0] in FLOW_KEYS


def load_flow_file(path: Path | str) -> FlowFile:
    """Reads and parses a flow file; a folder means its `flow.yaml`. NotFound or InvalidInput."""
    file = Path(path)
    if file.is_dir():
        file = file / "flow.yaml"
    try:
        if file.exists() and not file.is_file():
            raise InvalidInput(
                f"{file}: is not a file", reason="BAD_FLOW_FILE", next_step="Name a flow file (YAML), or its folder"
            )
        with file.open("rb") as opened:
            raw = opened.read(MAX_FLOW_FILE_BYTES + 1)  # no more, whatever it is
    except OSError as error:
        raise NotFound(
            f"{file}: {error.strerror or error}", reason="FLOW_FILE_NOT_FOUND", next_step="Name a flow file (YAML)"
        ) from error
    return parse_flow_file(raw, source=str(file), folder=file.parent.resolve())


def parse_flow_file(text: str | bytes, *, source: str, folder: Path) -> FlowFile:
    """Parses the text of a flow file. `source` names it in errors; relative components start at `folder`."""
    data = load_yaml(source, text, max_bytes=MAX_FLOW_FILE_BYTES)
    if data is None:
        raise InvalidInput(
            f"{source}: is empty", reason="BAD_FLOW_FILE", next_step="Write `name:` and `steps:`",
            metadata={"file": source},
        )  # fmt: skip
    readable = text if isinstance(text, str) else text.decode()
    try:
        name, spec, folders = FlowReader(folder).read(data)
    except InvalidInput as error:
        raise located(error, source, readable) from error
    return FlowFile(name, spec, folders, source, readable)
