"""What a bundle may hold: limits, names of entries, the lock file. Pure: used where bundles are packed, checked
and unpacked.

A bundle is a gzip-compressed tar of regular files and directories, nothing else. Its digest is the sha256 of
the uncompressed tar.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from headrace.model.errors import FieldViolation, InvalidInput

MIB = 1024 * 1024
MAX_BUNDLE_BYTES = 64 * MIB
"""Compressed size of a bundle."""
MAX_CONTENT_BYTES = 256 * MIB
"""Size of the uncompressed tar."""
MAX_ENTRIES = 10_000
MAX_PATH_BYTES = 1_000
MAX_PART_BYTES = 255
MAX_DEPTH = 32
MAX_MANIFEST_BYTES = 256 * 1024
MAX_SCHEMAS_BYTES = 512 * 1024
MAX_LOCK_BYTES = 4 * MIB

MANIFEST_FILE = "component.yaml"
LOCK_FILE = "requirements.lock"
SCHEMAS_FILE = "headrace.schemas.json"
IGNORE_FILE = ".headraceignore"

READ_WHOLE = {MANIFEST_FILE: MAX_MANIFEST_BYTES, LOCK_FILE: MAX_LOCK_BYTES, SCHEMAS_FILE: MAX_SCHEMAS_BYTES}
"""Files that are read whole when a bundle is inspected, and how large each may be."""

DEFAULT_IGNORED = (
    ".git",
    ".hg",
    ".svn",
    ".venv",
    "venv",
    "__pycache__",
    "*.pyc",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    ".tox",
    ".idea",
    ".vscode",
    ".DS_Store",
    ".headrace",
    ".env",
)
"""Never packed: history, caches, environments, and `.env`, where people keep secrets."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LOCKED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._, -]*\])?\s*==\s*[A-Za-z0-9.!+_-]+\s*(;[^#]*)?")
_HASH_OPTION = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def entry_path(name: str) -> str:
    """The normalised relative path of a tar entry (`a/b`, `` for the root); InvalidInput if it leads out."""
    problem = _entry_problem(name)
    if problem:
        raise InvalidInput.at(
            "bundle.entry",
            name,
            problem,
            reason="BUNDLE_UNSAFE_PATH",
            next_step="Pack the folder with `headrace component push`, which writes plain relative paths",
        )
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _entry_problem(name: str) -> str:
    if not name:
        return "is empty"
    if _CONTROL.search(name):
        return "holds control characters"
    if name.startswith("/"):
        return "is an absolute path"
    if "\\" in name:
        return "holds a backslash"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if size > MAX_PATH_BYTES:
        return f"is longer than {MAX_PATH_BYTES} bytes"
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        return "leads out of the bundle with '..'"
    if len(parts) > MAX_DEPTH:
        return f"is nested deeper than {MAX_DEPTH} folders"
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        return f"has a part longer than {MAX_PART_BYTES} bytes"
    return ""


class EntryNames:
    """Sees every path of a bundle once: refuses repeats, a file used as a folder, and too many entries."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = {""}
        self._spelt: dict[str, str] = {}
        self._count = 0

    def add(self, path: str, *, is_folder: bool) -> None:
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise InvalidInput.at(
                "bundle.entries",
                self._count,
                f"is above the limit of {MAX_ENTRIES} entries",
                reason="BUNDLE_TOO_MANY_ENTRIES",
                next_step=f"List what the component does not need in {IGNORE_FILE}",
            )
        if path in self._files or (not is_folder and path in self._folders):
            raise _conflict(path, "is in the bundle more than once")
        parents = path.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            parent = "/".join(parents[:depth])
            if parent in self._files:
                raise _conflict(path, f"lies in {parent!r}, which is a file")
            self._add(self._folders, parent)
        self._add(self._folders if is_folder else self._files, path)

    def _add(self, paths: set[str], path: str) -> None:
        spelt = self._spelt.setdefault(path.casefold(), path)
        if spelt != path:
            raise _conflict(path, f"differs from {spelt!r} only in upper and lower case: on some disks they are one")
        paths.add(path)


def _conflict(path: str, problem: str) -> InvalidInput:
    return InvalidInput.at(
        "bundle.entry", path, problem, reason="BUNDLE_UNSAFE_PATH", next_step="Give each file a name of its own"
    )


def too_large(what: str, limit: int) -> InvalidInput:
    """The error for a bundle beyond a size limit; `what` for example `bundle.content`."""
    return InvalidInput(
        f"{what}: more than {limit:,} bytes",
        reason="BUNDLE_TOO_LARGE",
        violations=[FieldViolation(what, f"more than {limit:,} bytes")],
        next_step=f"List what the component does not need in {IGNORE_FILE}",
    )


def check_lock(raw: bytes) -> None:
    """Every line of a lock pins one version with sha256 hashes; options such as an index URL are refused."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise _lock_error(0, "", "is not UTF-8 text") from error
    number = 0
    logical = ""
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.partition(" #")[0].strip() if not line.lstrip().startswith("#") else ""
        if stripped.endswith("\\"):
            logical += stripped[:-1] + " "
            continue
        _check_locked_line(number, (logical + stripped).strip())
        logical = ""
    _check_locked_line(number, logical.strip())


def check_lock_covers(requirements: Sequence[str], raw: bytes) -> None:
    """Each requirement (but those with a marker, which may not apply) has its line in a checked lock, and a version
    that is pinned with == is the one there. InvalidInput names the first that is not."""
    locked = {
        _plain_name(line): line.partition("==")[2].split(";")[0].split("\\")[0].split()[0]
        for line in raw.decode().splitlines()
        if "==" in line and not line.lstrip().startswith(("#", "-"))
    }
    for index, requirement in enumerate(requirements):
        if ";" in requirement:
            continue
        version = locked.get(_plain_name(requirement))
        wanted = requirement.partition("==")[2].strip(" )")
        if version is None:
            problem = f"is not in {LOCK_FILE}"
        elif wanted and not wanted.startswith("=") and not wanted.endswith("*") and wanted != version:
            problem = f"is not what {LOCK_FILE} pins, {version}"
        else:
            continue
        raise InvalidInput.at(
            f"requirements[{index}]",
            requirement,
            problem,
            reason="LOCK_MISMATCH",
            next_step=f"Delete {LOCK_FILE} and push again: it is then written anew",
        )


def _plain_name(line: str) -> str:
    """The package of a requirement or of a lock's line, as indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[(<>=!~;]", line.strip(), maxsplit=1)[0]).lower()


def _check_locked_line(number: int, line: str) -> None:
    if not line:
        return
    if line.startswith("-"):
        raise _lock_error(number, line, "is an option, which a lock may not hold")
    requirement, *options = re.split(r"\s+(?=--)", line)
    if not _LOCKED.fullmatch(requirement.strip()):
        raise _lock_error(number, requirement, "does not pin one version with ==")
    if not options:
        raise _lock_error(number, requirement, "has no sha256 hash")
    for option in options:
        if not _HASH_OPTION.fullmatch(option.strip()):
            raise _lock_error(number, option, "is not a sha256 hash")


def _lock_error(number: int, line: str, problem: str) -> InvalidInput:
    return InvalidInput.at(
        f"{LOCK_FILE}:{number}",
        line,
        problem,
        reason="BAD_LOCK",
        next_step=f"Delete {LOCK_FILE} and push again: it is then written with hashes",
    )
