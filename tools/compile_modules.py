"""Compiles the hot modules with mypyc: `python tools/compile_modules.py` (or `make fast`); see headrace/compiled.py.

Everything goes to `build/compiled`, nothing beside the sources. What is there already for the same sources,
interpreter, mypyc and machine is used again, which takes a second. Exit status 1, with what to do, where it cannot be
compiled; Headrace runs without it all the same.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from headrace import compiled
from tools.compiled_modules import MODULES, stranded, unfit

OPTIMIZE = "2"
KEPT = 3
"""Builds that stay: a process that began with an older one may still have modules to load from it."""
PRIVATE = 0o755
_COMPILE = """
import sys
from mypyc.build import mypycify
from setuptools import setup
target, optimize, group, *modules = sys.argv[1:]
extensions = mypycify(
    modules, opt_level=optimize, debug_level="0", multi_file=True, target_dir=target + "/c", group_name=group
)
setup(name=group, packages=[], py_modules=[], ext_modules=extensions, script_args=[
    "-q", "build_ext", "-j", "2", "--build-lib", target + "/lib", "--build-temp", target + "/tmp"])
"""


class CannotCompile(Exception):
    """What is missing, and what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=Path(compiled.ROOT), help="folder that holds headrace and services"
    )
    parser.add_argument("modules", nargs="*", help="other modules than those of tools/compiled_modules.py")
    given = parser.parse_args()
    try:
        print(build(given.root.resolve(), given.modules or MODULES))
    except CannotCompile as problem:
        print(f"not compiled: {problem}\nHeadrace runs without it, in pure Python.", file=sys.stderr)
        return 1
    return 0


def build(root: Path, modules: Sequence[str]) -> str:
    """Has the modules compiled for what their sources are now; answers what to tell. CannotCompile."""
    folder = root / compiled.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, PRIVATE)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = digests(root, looked_at(root, modules))
        key = key_of(modules, sources)
        made = not (folder / key).is_dir()
        if made:
            _refuse_unfit(root, modules)
            _check_tools()
            _compile(root, folder / key, modules)
        manifest = {
            "key": key,
            "python": sys.version,
            "modules": {name: f"{name}.so" for name in (*modules, compiled.LIBRARY)},
            "sources": sources,
        }
        _write_whole(folder / f"{compiled.SUFFIX}.json", json.dumps(manifest, indent=1).encode())
        os.utime(folder / key)
        _forget_old(folder)
    here = compiled.CompiledModules(str(root))
    if not here.decide() and here.reason != f"{compiled.VARIABLE}={compiled.OFF}":
        raise CannotCompile(here.reason)
    size = sum(file.stat().st_size for file in (folder / key).iterdir()) / 1e6
    return f"{len(modules)} modules {'compiled' if made else 'were compiled'}: {folder / key} ({size:.1f} MB)"


def looked_at(root: Path, modules: Iterable[str]) -> list[Path]:
    """Every file of ours that these import, directly or not, and so decides what they are compiled to."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = None if name in found else _file_of(root, name)
        if path is None:
            continue
        found[name] = path
        waiting += [name.rpartition(".")[0], *_imports(path)]
    return sorted(found.values())


def _file_of(root: Path, name: str) -> Path | None:
    if name.partition(".")[0] not in ("headrace", "services"):
        return None
    base = root / name.replace(".", "/")
    for path in (base.with_suffix(".pyi"), base.with_suffix(".py"), base / "__init__.pyi", base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def digests(root: Path, files: Iterable[Path]) -> dict[str, str]:
    """By name under the root."""
    return {str(file.relative_to(root)): sha256(file.read_bytes()).hexdigest() for file in files}


def key_of(modules: Sequence[str], sources: dict[str, str]) -> str:
    """Of all that decides what comes out."""
    from mypy.version import __version__ as mypyc

    parts = [compiled.SUFFIX, sys.version, platform.machine(), mypyc, OPTIMIZE, _COMPILE, sorted(modules), sources]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _refuse_unfit(root: Path, modules: Sequence[str]) -> None:
    files = {name: _file_of(root, name) for name in modules}
    missing = [name for name, file in files.items() if file is None]
    if missing:
        raise CannotCompile(f"there is no module {', '.join(missing)}; see tools/compiled_modules.py")
    problems = [f"{name}: {problem}" for name, file in files.items() if file for problem in unfit(file.read_text())]
    problems += stranded(root, modules)
    if problems:
        raise CannotCompile("; ".join(problems))


def _check_tools() -> None:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        raise CannotCompile(f"there is no C compiler ({compiler}). On Debian: apt-get install gcc libc6-dev")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise CannotCompile("this Python has no headers (Python.h). On Debian: apt-get install python3-dev")
    try:
        import mypyc.build  # noqa: F401
        import setuptools  # noqa: F401
    except ImportError as error:
        raise CannotCompile(f"{error}. Try: make setup") from error


def _compile(root: Path, target: Path, modules: Sequence[str]) -> None:
    """Builds elsewhere, then is there whole, or not at all."""
    files = [str((_file_of(root, name) or root).relative_to(root)) for name in modules]
    with tempfile.TemporaryDirectory(prefix=".part-", dir=target.parent) as scratch:
        command = [sys.executable, "-P", "-c", _COMPILE, scratch, OPTIMIZE, compiled.GROUP, *files]
        environment = {**os.environ, compiled.VARIABLE: compiled.OFF}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower()]
            raise CannotCompile("the compiler refused: " + " | ".join(lines[:12] or done.stderr.splitlines()[-3:]))
        whole = Path(scratch, "whole")
        whole.mkdir(mode=PRIVATE)
        for name in (*modules, compiled.LIBRARY):
            made = Path(scratch, "lib", *name.split(".")).with_suffix("." + compiled.SUFFIX + ".so")
            shutil.copyfile(made, whole / f"{name}.so")
            os.chmod(whole / f"{name}.so", PRIVATE)
        os.chmod(whole, PRIVATE)
        os.rename(whole, target)


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".part")
    partial.write_bytes(content)
    os.chmod(partial, 0o644)
    os.replace(partial, path)


def _forget_old(folder: Path) -> None:
    in_use: set[Any] = {json.loads(file.read_bytes())["key"] for file in folder.glob("*.json")}
    builds = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime)
    for path in builds[KEPT:]:
        if path.name not in in_use:
            shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
