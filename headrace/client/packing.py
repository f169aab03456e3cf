"""From a component's folder to a bundle that can be pushed: writes the lock and the schemas of typed functions.

Nothing is written into the folder; what is made goes into the bundle only. Blocking: call it in a thread.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from headrace.edge.bundle import PackedBundle, pack_folder
from headrace.model.bundle_rules import LOCK_FILE, MANIFEST_FILE, SCHEMAS_FILE, check_lock, check_lock_covers
from headrace.model.errors import InvalidInput, NotFound, Unavailable
from headrace.model.manifest import Manifest, merge_schemas, read_manifest
from headrace.model.strict_yaml import located

LOCK_TIMEOUT_S = 120.0
DESCRIBE_TIMEOUT_S = 30.0
SHOWN_CHARACTERS = 2_000
MOST_IMPORT_LINES = 8


def prepare_bundle(folder: Path) -> PackedBundle:
    """Checks the manifest, locks the requirements, asks the code for its schemas, packs.

    Use the answer as a context manager: its file is temporary. InvalidInput names what is wrong in the
    folder; Unavailable when the package index does not answer.
    """
    manifest_file = folder / MANIFEST_FILE
    if not manifest_file.is_file():
        raise NotFound(
            f"{folder}: no {MANIFEST_FILE}",
            reason="NO_MANIFEST",
            next_step=f"Name the folder that holds {MANIFEST_FILE}",
        )
    raw = manifest_file.read_bytes()
    manifest = read_manifest(raw, str(manifest_file))
    extra: dict[str, bytes] = {}
    lock_file = folder / LOCK_FILE
    if lock_file.is_file():
        check_lock(lock_file.read_bytes())
        check_lock_covers(manifest.requirements, lock_file.read_bytes())
    elif manifest.requirements:
        extra[LOCK_FILE] = write_lock(manifest.requirements)
    if not (folder / SCHEMAS_FILE).is_file():
        schemas = describe_folder(folder, manifest)
        if schemas is not None:
            try:
                merge_schemas(manifest, schemas)
            except InvalidInput as error:
                raise located(error, str(manifest_file), raw) from error
            extra[SCHEMAS_FILE] = json.dumps(schemas, sort_keys=True, indent=1).encode() + b"\n"
    return pack_folder(folder, extra)


def write_lock(requirements: tuple[str, ...]) -> bytes:
    """Resolves requirement lines into a lock with sha256 hashes for every platform, without index URLs."""
    command = [
        _uv(),
        "pip",
        "compile",
        "-",
        "--quiet",
        "--no-config",
        "--universal",
        f"--python-version={sysconfig.get_python_version()}",
        "--generate-hashes",
        "--no-emit-index-url",
        "--no-header",
        "--no-annotate",
    ]
    try:
        done = subprocess.run(
            command,
            input="\n".join(requirements).encode() + b"\n",
            capture_output=True,
            timeout=LOCK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(
            f"requirements: not resolved within {LOCK_TIMEOUT_S:.0f} s",
            reason="LOCK_TIMEOUT",
            next_step=f"Check the package index, or write {LOCK_FILE} yourself",
        ) from error
    if done.returncode != 0:
        raise InvalidInput(
            f"requirements: cannot be locked: {_tail(done.stderr)}",
            reason="LOCK_FAILED",
            next_step=f"Correct requirements in {MANIFEST_FILE}",
        )
    check_lock(done.stdout)
    return done.stdout


def describe_folder(folder: Path, manifest: Manifest) -> dict[str, Any] | None:
    """Schemas of the typed functions, from importing the code in a process of its own.

    None when the component has requirements and cannot be imported here, where they may be missing. Without
    requirements a failing import would fail in the mesh as well, and raises InvalidInput with its last lines.
    """
    command = [sys.executable, "-P", "-m", "headrace.sdk.describe", str(folder)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DESCRIBE_TIMEOUT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise InvalidInput(
            f"{manifest.component}: its import took more than {DESCRIBE_TIMEOUT_S:.0f} s",
            reason="IMPORT_FAILED",
            next_step="Move work out of the module's top level, into the init hook",
        ) from error
    if done.returncode != 0:
        if manifest.requirements:
            return None
        raise InvalidInput(
            f"{manifest.component}: {manifest.entrypoint} cannot be imported:\n{_where_it_failed(done.stderr)}",
            reason="IMPORT_FAILED",
            next_step="Correct the code or `entrypoint`, or list what it imports under `requirements`",
        )
    try:
        # The module may print while it is imported: what counts is the last line.
        schemas = json.loads(done.stdout.decode().strip().splitlines()[-1])
        assert isinstance(schemas, dict)
    except (ValueError, IndexError, AssertionError) as error:
        raise InvalidInput(
            f"{manifest.component}: its description is not a JSON object",
            reason="IMPORT_FAILED",
            next_step="Do not print at the module's top level",
        ) from error
    return schemas


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise NotFound("uv: no such program", reason="NO_UV", next_step="Install it: pip install uv")
    return found


def _where_it_failed(raw: bytes) -> str:
    """Of a traceback: the last file and line, what stands there, what it says, and what the loader makes of it."""
    lines = raw.decode(errors="replace").strip().splitlines()
    places = [number for number, line in enumerate(lines) if line.lstrip().startswith('File "')]
    first = max(places[-1] if places else 0, len(lines) - MOST_IMPORT_LINES)
    return "\n".join(lines[first:])[-SHOWN_CHARACTERS:]


def _tail(raw: bytes, lines: int = 30) -> str:
    shown = raw.decode(errors="replace").strip().splitlines()[-lines:]
    return "\n".join(shown)[-SHOWN_CHARACTERS:]
