"""YAML that people write, read strictly: bounded, no aliases, no repeated keys, errors with line numbers."""

from __future__ import annotations

from typing import Any

import yaml

from headrace.model.errors import InvalidInput

MAX_NESTING = 50

# libyaml's parser is ten times faster; the pure one answers the same.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_Base):  # type: ignore[misc]
    """Refuses repeated keys, which would silently lose the first value."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.MarkedYAMLError(problem="a key is not a plain value", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is repeated", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _check_events(data: bytes) -> None:
    """Before anything is built: aliases make a short document huge, deep nesting exhausts the stack."""
    nesting = 0
    mark: Any
    for event in yaml.parse(data, Loader=_Base):
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=mark)
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            nesting += 1
            if nesting > MAX_NESTING:
                raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_NESTING} levels", problem_mark=mark)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            nesting -= 1


def load_yaml(source: str, raw: bytes | str, *, max_bytes: int) -> Any:
    """The document as plain Python values; InvalidInput names `source` and the line of what is wrong."""
    data = raw.encode() if isinstance(raw, str) else raw
    if len(data) > max_bytes:
        raise InvalidInput(
            f"{source}: {len(data):,} bytes, more than {max_bytes:,}", reason="BAD_YAML", next_step="Make it shorter"
        )
    try:
        _check_events(data)
        return yaml.load(data, Loader=_StrictLoader)  # noqa: S506 - a safe loader, narrowed further
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise InvalidInput(
            f"{where}: not valid YAML: {problem}", reason="BAD_YAML", next_step="Correct that line"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise InvalidInput(f"{source}: not valid YAML: {problem}", reason="BAD_YAML") from error
