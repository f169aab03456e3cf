"""Imports the component of a bundle folder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from headrace.sdk.component import Component
from headrace.sdk.errors import DefinitionError

DEFAULT_ENTRYPOINT = "component:component"
MANIFEST_FILE = "component.yaml"


def read_entrypoint(folder: Path) -> str:
    """`module:attribute` from the folder's component.yaml, or the default. DefinitionError."""
    return str(read_manifest_file(folder).get("entrypoint") or DEFAULT_ENTRYPOINT)


def read_manifest_file(folder: Path) -> dict[str, Any]:
    """The folder's component.yaml as it stands; DefinitionError if it is not there or not YAML."""
    import yaml  # only needed outside of a running component

    path = folder / MANIFEST_FILE
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DefinitionError(f"{path}: not found; is {folder} a component's folder?") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DefinitionError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise DefinitionError(f"{path}: is not a mapping")
    return data


def load_component(folder: Path, entrypoint: str) -> Component:
    """Imports `module:attribute` with the folder first on the path and resolves its functions.

    DefinitionError for what is wrong with the entrypoint or the functions; the module's own exceptions come
    through as they are.
    """
    module_name, colon, attribute = entrypoint.partition(":")
    if not module_name or not colon or not attribute:
        raise DefinitionError(f"entrypoint {entrypoint!r} is not `module:attribute`, for example {DEFAULT_ENTRYPOINT}")
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name:
            raise DefinitionError(f"entrypoint {entrypoint!r}: the bundle has no module {module_name!r}") from error
        raise
    component = getattr(module, attribute, None)
    if not isinstance(component, Component):
        found = "nothing" if component is None else f"a {type(component).__name__}"
        raise DefinitionError(f"entrypoint {entrypoint!r}: {attribute!r} is {found}, not a headrace.sdk.Component")
    component.resolve()
    return component
