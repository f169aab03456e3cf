"""Checks of values that people or other programs wrote: text, mappings, JSON values, JSON Schemas. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.model.errors import FieldViolation, InvalidInput

MAX_NESTING = 60
MAX_KEY = 1_000


def check_mapping(field: str, data: object) -> dict[str, Any]:
    """The value if it is a mapping with text keys."""
    if not isinstance(data, dict):
        raise InvalidInput.at(field, data, "is not a mapping of names to values")
    for key in data:
        if not isinstance(key, str):
            raise InvalidInput.at(field, key, "is not a text key", next_step="Put it in quotes")
    return data


def check_text(field: str, data: object, *, limit: int, next_step: str = "Put it in quotes") -> str:
    """The value if it is text of at most `limit` characters that can be encoded."""
    if not isinstance(data, str):
        raise InvalidInput.at(field, data, "is not text", next_step=next_step)
    if len(data) > limit:
        raise InvalidInput.at(field, data, f"is longer than {limit} characters")
    try:
        data.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput.at(field, data, "is not valid text") from error
    return data


def check_json(field: str, value: Any, depth: int = 0) -> None:
    """Refuses what JSON cannot hold: YAML also knows dates, bytes, infinities and keys that are not text."""
    if depth > MAX_NESTING:
        raise InvalidInput(f"{field}: nested deeper than {MAX_NESTING} levels", reason="BAD_SCHEMA")
    if isinstance(value, dict):
        for key, item in value.items():
            check_text(field, key, limit=MAX_KEY)
            check_json(f"{field}.{key}", item, depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_json(f"{field}[{index}]", item, depth + 1)
    elif isinstance(value, str):
        check_text(field, value, limit=1_000_000)
    elif isinstance(value, int) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**64:
            raise InvalidInput.at(field, value, "does not fit in 64 bits", reason="BAD_SCHEMA")
    elif not (value is None or isinstance(value, bool) or (isinstance(value, float) and value - value == 0)):
        raise InvalidInput.at(field, value, "is not a JSON value", next_step="Put it in quotes", reason="BAD_SCHEMA")


def is_nested_deeper(value: Any, levels: int) -> bool:
    """Whether mappings and lists stand in each other more than so many levels deep; also of a value that contains
    itself. Without recursion."""
    level = [value]
    for _ in range(levels + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += [child for child in item.values() if isinstance(child, dict | list)]
            elif isinstance(item, list):
                inner += [child for child in item if isinstance(child, dict | list)]
        if not inner:
            return False
        # An aliased part stands there once, so that nested aliases cost no more than their text.
        level = list({id(child): child for child in inner}.values())
    return True


def check_json_body(field: str, content_type: str, body: bytes) -> None:
    """Refuses a body that is not JSON though its media type says so; an empty body passes."""
    media = content_type.partition(";")[0].strip().lower()
    if not body or not (media == "application/json" or media.endswith("+json")):
        return
    try:
        msgspec.json.decode(body, type=msgspec.Raw)  # syntax only, without building values
        body.decode()
    except RecursionError as error:
        raise InvalidInput.at(field, body[:60], "is nested too deeply", reason="MALFORMED_JSON") from error
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        problem = f"is not JSON, as its content type says: {error}"
        next_step = "Correct it, or give another content type, such as text/plain"
        raise InvalidInput.at(field, body[:60], problem, next_step=next_step, reason="MALFORMED_JSON") from error


def check_schema(field: str, data: object) -> dict[str, Any] | None:
    """The value if it is a JSON Schema (draft 2020-12) given as a mapping; None stays None."""
    if data is None:
        return None
    schema = check_mapping(field, data)
    check_json(field, schema)
    # Imported here: it is slow to load, and whoever only reads manifests does not need it.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except RecursionError as error:
        raise InvalidInput(f"{field}: nested too deeply", reason="BAD_SCHEMA") from error
    except SchemaError as error:
        where = ".".join([field, *(str(part) for part in error.absolute_path)])
        raise InvalidInput(
            f"{where}: not a JSON Schema: {error.message[:200]}",
            reason="BAD_SCHEMA",
            next_step="Correct the schema (draft 2020-12)",
            violations=[FieldViolation(where, error.message[:200])],
        ) from error
    return schema
