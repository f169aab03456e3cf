"""YAML that people write, read strictly: bounded, no aliases, no repeated keys, errors with line and column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from headrace.model.errors import FieldViolation, HeadraceError, InvalidInput

MAX_NESTING = 50
_BOOL, _TEXT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:str"

# libyaml's parser is ten times faster; the pure one answers the same.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in a text; both counted from 1, as editors do."""

    line: int
    column: int


class _StrictLoader(_Base):  # type: ignore[misc]
    """Refuses repeated keys, which would silently lose the first value."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == _BOOL:
                key_node.tag = _TEXT  # YAML 1.1 takes the key `on` for true
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.MarkedYAMLError(problem="a key is not a plain value", problem_mark=key_node.start_mark)
            if key in seen:
                problem = f"key {key!r} is repeated (first on line {seen[key]})"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


def _check_events(data: bytes) -> None:
    """Before anything is built: aliases make a short document huge, deep nesting exhausts the stack."""
    nesting = 0
    mark: Any
    for event in yaml.parse(data, Loader=_Base):
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            problem = f"aliases (*{event.anchor}) are not allowed; write the value out where it is meant"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            nesting += 1
            if nesting > MAX_NESTING:
                raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_NESTING} levels", problem_mark=mark)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            nesting -= 1


def load_yaml(source: str, raw: bytes | str, *, max_bytes: int) -> Any:
    """The document as plain Python values; InvalidInput names `source` and the place of what is wrong."""
    data = raw.encode() if isinstance(raw, str) else raw
    if len(data) > max_bytes:
        raise InvalidInput(
            f"{source}: is larger than {max_bytes:,} bytes",
            reason="FILE_TOO_LARGE",
            next_step="Make it shorter; is it the right file?",
            metadata={"file": source},
        )
    try:
        _check_events(data)
        return yaml.load(data, Loader=_StrictLoader)  # noqa: S506 - a safe loader, narrowed further
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        place = Place(mark.line + 1, mark.column + 1) if mark else None
        raise _not_yaml(source, problem, place) from error
    except UnicodeDecodeError as error:
        raise _not_yaml(source, f"not UTF-8 text (byte {error.start})", None) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _not_yaml(source, " ".join(str(error).split()), None) from error


def _not_yaml(source: str, problem: str, place: Place | None) -> InvalidInput:
    where = f"{source}:{place.line}:{place.column}" if place else source
    return InvalidInput(
        f"{where}: not valid YAML: {problem}",
        reason="BAD_YAML",
        next_step="Correct that line" if place else "Write UTF-8 text",
        violations=[FieldViolation(f"line {place.line}", problem)] if place else [],
        metadata=_where(source, place),
    )


def find_place(raw: bytes | str, field: str) -> Place:
    """Where a field of a document that `load_yaml` took stands: its key, or its item in a list. A field that is not
    there: the mapping it belongs in. `field` is a path such as `steps.price.to[0]`; `[2]` also means the third key of
    a mapping."""
    node: Any = yaml.compose(raw, Loader=_Base)
    place = Place(1, 1)
    rest = field
    while node is not None and rest:
        found = _descend(node, rest)
        if found is None:
            break
        mark, node, rest = found
        place = Place(mark.line + 1, mark.column + 1)
    return place


def _descend(node: Any, path: str) -> tuple[Any, Any, str] | None:
    """The first part of a path in a node: its mark, its value, and the rest of the path."""
    if path.startswith("["):
        number, _, rest = path[1:].partition("]")
        if not number.isdigit() or not isinstance(node, yaml.CollectionNode) or int(number) >= len(node.value):
            return None
        item = node.value[int(number)]
        key, value = item if isinstance(node, yaml.MappingNode) else (item, item)
        return key.start_mark, value, rest.removeprefix(".")
    if not isinstance(node, yaml.MappingNode):
        return None
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and path.startswith(key.value):
            rest = path[len(key.value) :]
            if not rest or rest[0] in ".[":
                return key.start_mark, value, rest.removeprefix(".")
    return None


def located(error: HeadraceError, source: str, raw: bytes | str) -> HeadraceError:
    """The same error with file, line and column in front of its message (those of its first field), in its metadata
    and, where several fields are wrong, behind each description."""
    if not error.violations or "line" in error.metadata:
        return error
    places = [find_place(raw, violation.field) for violation in error.violations]
    violations = error.violations
    if len(places) > 1:
        violations = tuple(
            FieldViolation(item.field, f"{item.description} (line {place.line}, column {place.column})")
            for item, place in zip(violations, places, strict=True)
        )
    return type(error)(
        f"{source}:{places[0].line}:{places[0].column}: {error.message}",
        reason=error.reason,
        next_step=error.next_step,
        violations=violations,
        metadata={**error.metadata, **_where(source, places[0])},
    )


def _where(source: str, place: Place | None) -> dict[str, str]:
    where = {"file": source}
    return {**where, "line": str(place.line), "column": str(place.column)} if place else where
