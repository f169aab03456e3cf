"""Imports a component's folder apart from all others.

In the mesh each step has its own process, so two folders may both have a `component.py`, and two steps of one
folder share no state. Here every load gives the folder's modules names of their own in `sys.modules`, and their
`import` statements (also those inside functions) look into the folder first.
"""

from __future__ import annotations

import builtins
import importlib
import itertools
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace.sdk.component import Component
from headrace.sdk.loading import import_component, read_entrypoint

_numbers = itertools.count(1)


class _Loader(SourceFileLoader):
    """Gives each module of the folder the folder's own `__import__`."""

    folder: IsolatedFolder

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self.folder.builtins
        super().exec_module(module)


class IsolatedFolder:
    """The modules of one loaded folder; `close` forgets them."""

    def __init__(self, folder: Path) -> None:
        self._place = folder.resolve()
        self._prefix = f"_headrace_{next(_numbers)}_"
        self._loader = type("_FolderLoader", (_Loader,), {"folder": self})
        self.builtins = {**vars(builtins), "__import__": self._import}

    def load(self, entrypoint: str = "") -> Component:
        """The folder's component; DefinitionError, or what its code raises."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        try:
            return import_component(entrypoint or read_entrypoint(self._place), self._import_module)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name in [name for name in sys.modules if name.startswith(self._prefix)]:
            del sys.modules[name]

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finder for sys.meta_path: knows the prefixed names only."""
        if not name.startswith(self._prefix):
            return None
        if path is not None:
            found = (FileFinder(place, (self._loader, [".py"])).find_spec(name) for place in path)
            return next((spec for spec in found if spec is not None), None)
        file = self._file_of(name.removeprefix(self._prefix))
        if file is None:
            return None
        inside = [str(file.parent)] if file.name == "__init__.py" else None
        loader = self._loader(name, str(file))
        return spec_from_file_location(name, file, loader=loader, submodule_search_locations=inside)

    def _file_of(self, name: str) -> Path | None:
        for file in (self._place / name / "__init__.py", self._place / f"{name}.py"):
            if file.is_file():
                return file
        return None

    def _import_module(self, name: str) -> ModuleType:
        try:
            return importlib.import_module(self._prefix + name)
        except ModuleNotFoundError as error:
            if error.name != self._prefix + name:
                raise
            raise ModuleNotFoundError(f"No module named {name!r}", name=name) from None

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """`import name` as seen by a module of the folder."""
        if level == 0 and self._file_of(name.partition(".")[0]) is not None:
            name = self._prefix + name
        return builtins.__import__(name, globals, locals, fromlist or (), level)
