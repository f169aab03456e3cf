"""What component.yaml says: parsed strictly, completed with the schemas of typed functions. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, cast

import msgspec

from headrace.model.bundle_rules import MANIFEST_FILE, MAX_MANIFEST_BYTES, MAX_SCHEMAS_BYTES, SCHEMAS_FILE
from headrace.model.errors import FieldViolation, InvalidInput
from headrace.model.json_values import check_mapping, check_schema, check_text
from headrace.model.names import check_function, check_name, check_tag, is_semver
from headrace.model.strict_yaml import load_yaml, located
from headrace.model.suggestion import did_you_mean

FunctionKind = Literal["action", "trigger", "listener"]
FUNCTION_KINDS: tuple[FunctionKind, ...] = ("action", "trigger", "listener")
LANGUAGES = ("python",)
DEFAULT_ENTRYPOINT = "component:component"
MAX_FUNCTIONS = 100
MAX_REQUIREMENTS = 200
MAX_TITLE = 200
MAX_DESCRIPTION = 10_000

ENTRYPOINT_PATTERN = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*"
REQUIREMENT_PATTERN = (
    r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"  # name
    r"\s*(\[[A-Za-z0-9._, -]*\])?"  # extras
    r"\s*(\(?[<>=!~]=?=?[^;@#()]*\)?)?"  # version
    r"\s*(;[^#]*)?"  # marker
)
_ENTRYPOINT = re.compile(ENTRYPOINT_PATTERN)
_REQUIREMENT = re.compile(REQUIREMENT_PATTERN)
MANIFEST_KEYS = ("name", "title", "description", "version", "language", "entrypoint", "functions", "requirements")
FUNCTION_KEYS = ("kind", "title", "description", "config", "in", "out", "exclusive")


class FunctionManifest(msgspec.Struct, frozen=True):
    """One function; the schemas are JSON Schemas (draft 2020-12), None where it does not say."""

    name: str
    kind: FunctionKind
    title: str = ""
    description: str = ""
    config_schema: dict[str, Any] | None = None
    in_schema: dict[str, Any] | None = None
    out_schema: dict[str, Any] | None = None
    exclusive: bool = False


class Manifest(msgspec.Struct, frozen=True):
    """A component as its component.yaml describes it."""

    component: str
    title: str
    description: str
    version: str
    language: str
    entrypoint: str
    functions: tuple[FunctionManifest, ...]
    requirements: tuple[str, ...] = ()

    def function(self, name: str) -> FunctionManifest:
        """The function of that name; KeyError if there is none."""
        for function in self.functions:
            if function.name == name:
                return function
        raise KeyError(name)


def read_manifest(raw: bytes, source: str = MANIFEST_FILE) -> Manifest:
    """Parses the bytes of component.yaml; InvalidInput names `source`, line, column and field."""
    data = load_yaml(source, raw, max_bytes=MAX_MANIFEST_BYTES)
    try:
        return parse_manifest(data)
    except InvalidInput as error:
        raise located(error, source, raw) from error


def parse_manifest(data: object) -> Manifest:
    """Checks what yaml.safe_load made of component.yaml; InvalidInput names field, value and what to do."""
    top = check_mapping(MANIFEST_FILE, data)
    _refuse_unknown("", top, MANIFEST_KEYS)
    if "name" not in top:
        raise _missing("name", "for example `name: price`")
    name = check_name("name", check_text("name", top["name"], limit=63))
    version = _version(top.get("version"))
    language = check_text("language", top.get("language", "python"), limit=40)
    if language not in LANGUAGES:
        raise InvalidInput.at("language", language, "is not supported", next_step=f"Use {' or '.join(LANGUAGES)}")
    return Manifest(
        component=name,
        title=check_text("title", top.get("title", ""), limit=MAX_TITLE),
        description=check_text("description", top.get("description", ""), limit=MAX_DESCRIPTION),
        version=version,
        language=language,
        entrypoint=_entrypoint(top),
        functions=_functions(top.get("functions")),
        requirements=_requirements(top.get("requirements")),
    )


def read_entrypoint(raw: bytes) -> str:
    """Only the entry point of a component.yaml that was checked when it was pushed: loads no schema checker."""
    return _entrypoint(check_mapping(MANIFEST_FILE, load_yaml(MANIFEST_FILE, raw, max_bytes=MAX_MANIFEST_BYTES)))


def _entrypoint(top: Mapping[str, Any]) -> str:
    entrypoint = check_text("entrypoint", top.get("entrypoint", DEFAULT_ENTRYPOINT), limit=200)
    if not _ENTRYPOINT.fullmatch(entrypoint):
        raise InvalidInput.at(
            "entrypoint", entrypoint, "is not module:attribute", next_step="For example price:component"
        )
    return entrypoint


def _functions(data: object) -> tuple[FunctionManifest, ...]:
    if data is None or data == {}:
        raise _missing("functions", "for example `functions: {price: {kind: action}}`")
    functions = check_mapping("functions", data)
    if len(functions) > MAX_FUNCTIONS:
        raise InvalidInput.at("functions", len(functions), f"is above the limit of {MAX_FUNCTIONS}")
    return tuple(_function(name, value) for name, value in functions.items())


def _function(name: str, data: object) -> FunctionManifest:
    field = f"functions.{name}"
    check_function(field, name)
    values = check_mapping(field, data)
    _refuse_unknown(f"{field}.", values, FUNCTION_KEYS)
    if "kind" not in values:
        raise _missing(f"{field}.kind", "one of " + ", ".join(FUNCTION_KINDS))
    kind = values["kind"]
    if kind not in FUNCTION_KINDS:
        raise InvalidInput.at(
            f"{field}.kind",
            kind,
            "is not a kind of function",
            next_step="Use " + ", ".join(FUNCTION_KINDS),
            reason="UNKNOWN_FUNCTION_KIND",
        )
    exclusive = values.get("exclusive", False)
    if not isinstance(exclusive, bool):
        raise InvalidInput.at(f"{field}.exclusive", exclusive, "is not true or false")
    if exclusive and kind != "listener":
        raise InvalidInput.at(
            f"{field}.exclusive", exclusive, f"fits a listener only, not kind {kind}", next_step="Remove it"
        )
    return FunctionManifest(
        name=name,
        kind=cast(FunctionKind, kind),
        title=check_text(f"{field}.title", values.get("title", ""), limit=MAX_TITLE),
        description=check_text(f"{field}.description", values.get("description", ""), limit=MAX_DESCRIPTION),
        config_schema=check_schema(f"{field}.config", values.get("config")),
        in_schema=check_schema(f"{field}.in", values.get("in")),
        out_schema=check_schema(f"{field}.out", values.get("out")),
        exclusive=exclusive,
    )


def _version(data: object) -> str:
    version = check_text(
        "version", data if data is not None else "", limit=64, next_step="Write it as `version: 1.0.0`"
    )
    if not version:
        return ""
    if not is_semver(version):
        raise InvalidInput.at("version", version, "is not a semantic version", next_step="For example 1.2.0")
    return check_tag("version", version)


def _requirements(data: object) -> tuple[str, ...]:
    if data is None:
        return ()
    if not isinstance(data, list):
        raise InvalidInput.at("requirements", data, "is not a list", next_step="For example [httpx>=0.27]")
    if len(data) > MAX_REQUIREMENTS:
        raise InvalidInput.at("requirements", len(data), f"is above the limit of {MAX_REQUIREMENTS}")
    lines: list[str] = []
    for index, line in enumerate(data):
        field = f"requirements[{index}]"
        text = check_text(field, line, limit=500).strip()
        if not _REQUIREMENT.fullmatch(text):
            raise InvalidInput.at(
                field,
                text,
                "is not a requirement by name and version",
                next_step="For example httpx>=0.27; options, paths and URLs are not taken",
            )
        lines.append(text)
    return tuple(lines)


def read_schemas(raw: bytes) -> dict[str, Any]:
    """Parses headrace.schemas.json: {function: {"kind", "in", "out"}}."""
    if len(raw) > MAX_SCHEMAS_BYTES:
        raise InvalidInput(f"{SCHEMAS_FILE}: {len(raw):,} bytes, more than {MAX_SCHEMAS_BYTES:,}", reason="BAD_SCHEMA")
    try:
        schemas = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{SCHEMAS_FILE}: not JSON: {error}", reason="BAD_SCHEMA") from error
    return check_mapping(SCHEMAS_FILE, schemas)


def merge_schemas(manifest: Manifest, schemas: Mapping[str, Any]) -> Manifest:
    """Fills schemas that the manifest leaves out with those of typed functions.

    `schemas` is what `python -m headrace.sdk.describe` prints. A function of the manifest that the code does
    not have, or has as another kind, raises InvalidInput; functions the manifest does not name stay private.
    """
    merged = []
    for function in manifest.functions:
        field = f"functions.{function.name}"
        if function.name not in schemas:
            known = ", ".join(sorted(schemas)) or "none"
            raise InvalidInput.at(
                field,
                function.name,
                "is not a function of the component's code",
                next_step=f"The code has: {known}",
                reason="UNKNOWN_FUNCTION",
            )
        described = check_mapping(f"{SCHEMAS_FILE}: {function.name}", schemas[function.name])
        kind = described.get("kind", function.kind)
        if kind != function.kind:
            raise InvalidInput.at(
                f"{field}.kind", function.kind, f"differs from the code, where it is {kind}", next_step="Correct one"
            )
        merged.append(
            msgspec.structs.replace(
                function,
                in_schema=_schema_of(function.in_schema, f"{field}.in", described.get("in")),
                out_schema=_schema_of(function.out_schema, f"{field}.out", described.get("out")),
            )
        )
    return msgspec.structs.replace(manifest, functions=tuple(merged))


def _schema_of(stated: dict[str, Any] | None, field: str, described: object) -> dict[str, Any] | None:
    return stated if stated is not None else check_schema(field, described)


def _refuse_unknown(prefix: str, data: Mapping[str, Any], known: Collection[str]) -> None:
    for key in data:
        if key not in known:
            raise InvalidInput.at(
                f"{prefix}{key}",
                data[key],
                "is set, but there is no such field",
                next_step=did_you_mean(key, known) or "Known fields: " + ", ".join(sorted(known)),
                reason="UNKNOWN_FIELD",
            )


def _missing(field: str, example: str) -> InvalidInput:
    return InvalidInput(
        f"{field}: is missing",
        reason="MISSING_FIELD",
        next_step=f"Add it, {example}",
        violations=[FieldViolation(field, "is missing")],
    )
