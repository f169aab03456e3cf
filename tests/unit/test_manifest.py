"""component.yaml: what is taken, what is refused and how the refusal reads."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.errors import InvalidInput
from headrace.model.manifest import FUNCTION_KINDS, Manifest, merge_schemas, parse_manifest, read_manifest
from headrace.wire.manifest import manifest_from_proto, manifest_to_proto

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True)
FUNCTIONS = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,20}", fullmatch=True)
# PyYAML writes U+0085 in a quoted text as a line break, and reads it back as a blank.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x85"), max_size=60)
SCHEMAS = st.sampled_from(
    [{}, {"type": "object"}, {"type": "object", "properties": {"total": {"type": "integer", "minimum": 0}}}]
)


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Any]:
    functions: dict[str, Any] = {}
    for name in draw(st.lists(FUNCTIONS, min_size=1, max_size=4, unique=True)):
        kind = draw(st.sampled_from(FUNCTION_KINDS))
        function: dict[str, Any] = {"kind": kind}
        for field in ("config", "in", "out"):
            if draw(st.booleans()):
                function[field] = deepcopy(draw(SCHEMAS))  # else YAML writes an alias
        if kind == "listener":
            function["exclusive"] = draw(st.booleans())
        function["title"] = draw(TEXTS)
        functions[name] = function
    manifest: dict[str, Any] = {"name": draw(NAMES), "functions": functions}
    if draw(st.booleans()):
        numbers = draw(st.tuples(*[st.integers(0, 99)] * 3))
        manifest["version"] = ".".join(str(number) for number in numbers)
    if draw(st.booleans()):
        manifest["requirements"] = ["httpx>=0.27", "pydantic[email]==2.1 ; python_version < '4'"]
    manifest["description"] = draw(TEXTS)
    return manifest


@given(manifests())
def test_every_valid_manifest_survives_yaml_and_proto(data: dict[str, Any]) -> None:
    manifest = parse_manifest(data)
    assert manifest.component == data["name"]
    assert [one.name for one in manifest.functions] == list(data["functions"])
    assert read_manifest(yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode()) == manifest
    assert manifest_from_proto(manifest_to_proto(manifest)) == manifest


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.integers(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["name", "functions", "version", "language", "entrypoint", "requirements", "title", "surprise"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5) | JSON)
def test_whatever_comes_is_taken_or_refused_as_invalid(data: Any) -> None:
    with suppress(InvalidInput):
        assert isinstance(parse_manifest(data), Manifest)


@given(st.binary(max_size=200))
def test_bytes_that_are_not_yaml_are_refused_as_invalid(raw: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_manifest(raw)


GOOD = {"name": "price", "functions": {"price": {"kind": "action"}}}


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"name": "Price"}, "name", "'Price' is not a name"),
        ({"name": None}, "name", "is not text"),
        ({"nam": "x"}, "nam", "no such field"),
        ({"version": 1.0}, "version", "is not text"),
        ({"version": "1.0"}, "version", "is not a semantic version"),
        ({"version": "1.0.0+build"}, "version", "is not a tag"),
        ({"language": "cobol"}, "language", "is not supported"),
        ({"entrypoint": "price"}, "entrypoint", "is not module:attribute"),
        ({"functions": {}}, "functions", "is missing"),
        ({"functions": []}, "functions", "is not a mapping"),
        ({"functions": {"2": {"kind": "action"}}}, "functions.2", "is not a function name"),
        ({"functions": {"a": {}}}, "functions.a.kind", "is missing"),
        ({"functions": {"a": {"kind": "actor"}}}, "functions.a.kind", "'actor' is not a kind"),
        ({"functions": {"a": {"kind": "action", "input": {}}}}, "functions.a.input", "no such field"),
        ({"functions": {"a": {"kind": "action", "exclusive": True}}}, "functions.a.exclusive", "listener only"),
        ({"functions": {"a": {"kind": "action", "in": {"type": "objct"}}}}, "functions.a.in.type", "not a JSON Schema"),
        ({"functions": {"a": {"kind": "action", "in": []}}}, "functions.a.in", "is not a mapping"),
        ({"requirements": "httpx"}, "requirements", "is not a list"),
        ({"requirements": ["--index-url https://x"]}, "requirements[0]", "is not a requirement"),
        ({"requirements": ["httpx", "-e ."]}, "requirements[1]", "is not a requirement"),
        ({"requirements": ["x @ https://example.org/x.whl"]}, "requirements[0]", "is not a requirement"),
        ({"requirements": ["../x"]}, "requirements[0]", "is not a requirement"),
    ],
)
def test_refusals_name_field_value_and_next_step(change: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_manifest({**GOOD, **change})
    assert field in caught.value.message
    assert words in caught.value.message
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: price\nname: other\n", "component.yaml:2:1: not valid YAML: key 'name' is repeated (first on line 1)"),
        ("a: &x [1]\nb: *x\n", "component.yaml:2:4: not valid YAML: aliases"),
        ("name: [\n", "component.yaml:2:1: not valid YAML"),
        ("name: !!python/object/apply:os.getcwd []\n", "component.yaml:1:7: not valid YAML"),
        ("[" * 10_000, "nested deeper than 50 levels"),
        ("name: " + "x" * 300_000, "larger than 262,144 bytes"),
    ],
)
def test_yaml_is_read_strictly_with_line_numbers(text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_manifest(text.encode())
    assert words in caught.value.message


def test_typed_functions_fill_in_schemas_and_the_manifest_wins() -> None:
    manifest = parse_manifest(
        {
            "name": "price",
            "functions": {"a": {"kind": "action", "in": {"type": "string"}}, "b": {"kind": "trigger"}},
        }
    )
    schemas = {
        "a": {"kind": "action", "in": {"type": "object"}, "out": {"type": "integer"}},
        "b": {"kind": "trigger", "in": None, "out": None},
        "private": {"kind": "action", "in": None, "out": None},
    }
    merged = merge_schemas(manifest, schemas)
    assert merged.function("a").in_schema == {"type": "string"}
    assert merged.function("a").out_schema == {"type": "integer"}
    assert merged.function("b").in_schema is None
    with pytest.raises(InvalidInput, match="is not a function of the component's code"):
        merge_schemas(manifest, {"a": schemas["a"]})
    with pytest.raises(InvalidInput, match="differs from the code, where it is action"):
        merge_schemas(manifest, {**schemas, "b": {"kind": "action"}})
