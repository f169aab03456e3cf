"""From a folder to a bundle: lock and schemas are made, the folder stays as it was."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from headrace.client.packing import prepare_bundle
from headrace.edge.bundle import inspect_bundle
from headrace.model.errors import InvalidInput, NotFound

SOURCE = """
from headrace.sdk import Component

component = Component()
print("hello from the import")


@component.action
def price(order: dict[str, int]) -> int:
    return order["total"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "price"
    folder.mkdir()
    (folder / "component.yaml").write_text("name: price\nfunctions:\n  price: {kind: action}\n")
    (folder / "component.py").write_text(SOURCE)
    return folder


def local_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with one wheel, in place of a package index."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "weights-1.5-py3-none-any.whl", "w") as wheel:
        wheel.writestr("weights.py", "KILO = 1000\n")
        wheel.writestr("weights-1.5.dist-info/METADATA", "Metadata-Version: 2.1\nName: weights\nVersion: 1.5\n")
        wheel.writestr("weights-1.5.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("weights-1.5.dist-info/RECORD", "")
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))


def test_typed_functions_give_schemas(folder: Path) -> None:
    with prepare_bundle(folder) as packed:
        (function,) = inspect_bundle(packed.path).manifest.functions
    assert function.in_schema == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert function.out_schema == {"type": "integer"}
    assert sorted(os.listdir(folder)) == ["component.py", "component.yaml"]


def test_packing_twice_gives_the_same_digest(folder: Path) -> None:
    with prepare_bundle(folder) as first, prepare_bundle(folder) as second:
        assert first.digest == second.digest


def test_requirements_are_locked_with_hashes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local_index(tmp_path / "index", monkeypatch)
    with open(folder / "component.yaml", "a") as manifest:
        manifest.write("requirements: [weights>=1.0]\n")
    (folder / "component.py").write_text("import weights\n" + SOURCE)  # not installed here: no schemas
    with prepare_bundle(folder) as packed:
        content = inspect_bundle(packed.path)
    assert content.lock is not None
    assert b"weights==1.5" in content.lock
    assert b"--hash=sha256:" in content.lock
    assert str(tmp_path).encode() not in content.lock
    assert content.manifest.functions[0].in_schema is None
    assert sorted(os.listdir(folder)) == ["component.py", "component.yaml"]


def test_a_requirement_that_does_not_exist_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_index(tmp_path / "index", monkeypatch)
    with open(folder / "component.yaml", "a") as manifest:
        manifest.write("requirements: [weights>=99]\n")
    with pytest.raises(InvalidInput, match="weights") as caught:
        prepare_bundle(folder)
    assert caught.value.reason == "LOCK_FAILED"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nothing_like_it\n", "No module named 'nothing_like_it'"),
        ("raise SystemExit(0)\n", "SystemExit"),
        ("x = 1\n", "component"),
        (SOURCE.replace("def price", "def other"), "is not a function of the component's code"),
        (SOURCE.replace("@component.action", "@component.trigger"), "differs from the code"),
    ],
)
def test_code_that_cannot_serve_its_manifest_is_refused(folder: Path, source: str, words: str) -> None:
    (folder / "component.py").write_text(source)
    with pytest.raises(InvalidInput, match=words):
        prepare_bundle(folder)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no component\.yaml"):
        prepare_bundle(tmp_path)
