"""Imports a component's folder without leaving a trace in `sys.modules`.

In the mesh each step has its own process, so two folders may both have a `component.py`, and two steps of one
folder share no state. Here each load keeps its own modules: they are in `sys.modules` only while something of
that folder is being imported, also later, inside a function.
"""

from __future__ import annotations

import builtins
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace.sdk.component import Component
from headrace.sdk.loading import import_component, read_entrypoint

_importing = threading.RLock()


class _Loader(SourceFileLoader):
    """Gives each module of the folder an `__import__` that looks into the folder first."""

    folder: IsolatedFolder

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self.folder.builtins
        super().exec_module(module)


class IsolatedFolder:
    """The modules of one loaded folder."""

    def __init__(self, folder: Path) -> None:
        self._place = str(folder.resolve())
        self._modules: dict[str, ModuleType] = {}
        self._own = type("_OwnLoader", (_Loader,), {"folder": self})
        self.builtins = {**vars(builtins), "__import__": self._import}

    def load(self, entrypoint: str = "") -> Component:
        """The folder's component; DefinitionError, or what its code raises."""
        entrypoint = entrypoint or read_entrypoint(Path(self._place))
        with self._entered():
            return import_component(entrypoint)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finder for sys.meta_path; packages of the folder are searched too."""
        for place in path if path is not None else (self._place,):
            if place == self._place or place.startswith(self._place + "/"):
                spec = FileFinder(place, (self._own, [".py"])).find_spec(name)
                if spec is not None:
                    return spec
        return None

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        with self._entered():
            return builtins.__import__(name, globals, locals, fromlist, level)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """The folder's modules are importable, and stand in for others of the same name."""
        with _importing:
            if self in sys.meta_path:
                yield
                return
            names = self._names()
            hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}
            sys.modules.update(self._modules)
            sys.meta_path.insert(0, self)
            try:
                yield
            finally:
                sys.meta_path.remove(self)
                for name in list(sys.modules):
                    if name.partition(".")[0] in names:
                        self._modules[name] = sys.modules.pop(name)
                sys.modules.update(hidden)

    def _names(self) -> set[str]:
        """Top-level names that the folder's own files take."""
        found = set()
        for entry in Path(self._place).iterdir():
            if entry.suffix == ".py" and entry.is_file():
                found.add(entry.stem)
            elif entry.is_dir() and entry.name.isidentifier() and any(entry.glob("*.py")):
                found.add(entry.name)
        return found
