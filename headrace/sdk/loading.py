"""Imports the component of a bundle folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from headrace.model.errors import HeadraceError
from headrace.sdk.component import Component
from headrace.sdk.errors import DefinitionError

if TYPE_CHECKING:
    from headrace.model.manifest import Manifest

DEFAULT_ENTRYPOINT = "component:component"
MANIFEST_FILE = "component.yaml"


def read_entrypoint(folder: Path) -> str:
    """`module:attribute` from the folder's component.yaml, or the default. DefinitionError."""
    return read_folder_manifest(folder).entrypoint


def read_folder_manifest(folder: Path) -> Manifest:
    """The folder's component.yaml; DefinitionError if it is not there or wrong."""
    from headrace.model.manifest import read_manifest  # not needed by a running component

    path = folder / MANIFEST_FILE
    try:
        return read_manifest(path.read_bytes())
    except OSError as error:
        raise DefinitionError(f"{path}: {error.strerror}; is {folder} a component's folder?") from error
    except HeadraceError as error:
        raise DefinitionError(f"{path}: {error}") from error


def load_component(folder: Path, entrypoint: str) -> Component:
    """Imports `module:attribute` with the folder first on the path and resolves its functions.

    DefinitionError for what is wrong with the entrypoint or the functions; the module's own exceptions come
    through as they are.
    """
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)
    return import_component(entrypoint)


def import_component(
    entrypoint: str, import_module: Callable[[str], ModuleType] = importlib.import_module
) -> Component:
    """Like `load_component`, from wherever `import_module` finds the module."""
    module_name, colon, attribute = entrypoint.partition(":")
    if not module_name or not colon or not attribute:
        raise DefinitionError(f"entrypoint {entrypoint!r} is not `module:attribute`, for example {DEFAULT_ENTRYPOINT}")
    try:
        module = import_module(module_name)
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
