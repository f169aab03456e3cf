"""C extensions made of this package's own hot modules: used only while they match the sources beside them.

`make fast` (tools/compile_modules.py) writes them to `build/compiled/<key>/` and, beside that, `<suffix>.json`, which
names the digest of every source that the compiler looked at. A process compares those digests once, at the first
import of a module that was compiled (3 ms); if one differs, all modules are imported from their sources, as they are
where nothing was built. So an edited source is never hidden, and modules of two states never meet in one process.

HEADRACE_COMPILED=0 turns it off; HEADRACE_COMPILED=required makes that first import fail where they cannot be used.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from types import ModuleType
from typing import Any

VARIABLE = "HEADRACE_COMPILED"
OFF, REQUIRED = "0", "required"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The folder that holds `headrace` and `services`."""
FOLDER = os.path.join("build", "compiled")
"""Under the root; one folder for each key, one `<suffix>.json` for each kind of interpreter."""
SUFFIX = EXTENSION_SUFFIXES[0].removeprefix(".").removesuffix(".so")
GROUP = "headrace_compiled"
LIBRARY = f"{GROUP}__mypyc"
"""The extension that holds the code; those of the modules only call it."""
OURS = ("headrace.", "services.", GROUP)


class CompiledModules:
    """What one process runs; `sys.meta_path` holds it from `install` until it is found that nothing can be used."""

    def __init__(self, root: str = ROOT) -> None:
        self._root = root
        self._manifest: dict[str, Any] | None = None
        self._decided = False
        self.key = ""
        """Of the build that is used; empty: pure Python."""
        self.reason = ""
        """Why pure Python runs; empty while compiled modules do, or while nobody needed to know."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The extension of a module, as an entry of `sys.meta_path` answers."""
        if not fullname.startswith(OURS):
            return None
        if self._manifest is None:
            self._manifest = self._read()
        file = self._manifest["modules"].get(fullname)
        if file is None or not self.decide():
            return None
        location = os.path.join(self._root, FOLDER, self.key, file)
        return ModuleSpec(fullname, _Loader(fullname, location), origin=location)

    def decide(self) -> bool:
        """Whether compiled modules are used; looks once. ImportError where they are required and are not."""
        if self._decided:
            return bool(self.key)
        self._decided = True
        asked = os.environ.get(VARIABLE, "")
        if asked == OFF:
            self.reason = f"{VARIABLE}=0"
        else:
            self._manifest = self._manifest or self._read()
            self.reason = self.reason or self._mismatch(self._manifest)
            if not self.reason:
                self.key = self._manifest["key"]
        if not self.key:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            if asked == REQUIRED:
                raise ImportError(f"{VARIABLE}={REQUIRED}, but {self.reason}. Try: make fast")
        return bool(self.key)

    def _read(self) -> dict[str, Any]:
        import json

        nothing: dict[str, Any] = {"modules": {}}
        path = os.path.join(self._root, FOLDER, f"{SUFFIX}.json")
        try:
            refused = _distrusted(os.path.join(self._root, "build"), os.path.dirname(path), path)
            if refused:
                self.reason = refused
                return nothing
            with open(path, "rb") as file:
                manifest = json.loads(file.read())
        except FileNotFoundError:
            self.reason = "nothing was compiled for this interpreter"
            return nothing
        except (OSError, ValueError) as error:
            self.reason = f"{path} cannot be read: {error}"
            return nothing
        if not _is_manifest(manifest):
            self.reason = f"{path} is no manifest"
            return nothing
        return dict(manifest)

    def _mismatch(self, manifest: dict[str, Any]) -> str:
        """Why this build is not to be used; empty if it is."""
        from hashlib import sha256

        if manifest["python"] != sys.version:
            return f"it was compiled for Python {manifest['python'].partition(' ')[0]}"
        folder = os.path.join(self._root, FOLDER, manifest["key"])
        try:
            refused = _distrusted(folder, *(os.path.join(folder, file) for file in manifest["modules"].values()))
        except OSError as error:
            return f"the build is not whole: {error}"
        if refused:
            return refused
        for name, digest in manifest["sources"].items():
            try:
                with open(os.path.join(self._root, name), "rb", buffering=0) as file:
                    same = sha256(file.read()).hexdigest() == digest
            except OSError:
                same = False
            if not same:
                return f"{name} differs from what was compiled"
        return ""


def _is_manifest(said: Any) -> bool:
    """Whether its names name something, and nothing outside its own folder."""
    if not isinstance(said, dict) or not {"key", "python", "modules", "sources"} <= said.keys():
        return False
    return all(os.path.basename(name) == name for name in (said["key"], *said["modules"].values()))


class _Loader(ExtensionFileLoader):
    """An extension whose file is named after the whole module."""

    def is_package(self, fullname: str) -> bool:
        return False


def _distrusted(*paths: str) -> str:
    """Why something there is not to be loaded: whoever else can write it could run code in this process."""
    for path in paths:
        found = os.lstat(path)
        if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
            return f"{path} is neither a file nor a folder"
        if found.st_uid not in (0, os.geteuid()):
            return f"{path} belongs to another user"
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{path} can be written by others"
    return ""


PROCESS = CompiledModules()
"""What this process runs."""


def code() -> str:
    """What this process runs, for people: `compiled 2dd142de`, or `pure Python (why)`."""
    return f"compiled {PROCESS.key[:8]}" if PROCESS.decide() else f"pure Python ({PROCESS.reason})"


def install() -> None:
    """Called by `headrace` itself, before any module that may have been compiled is imported."""
    if os.environ.get(VARIABLE) != OFF:
        sys.meta_path.insert(0, PROCESS)
