"""Modules that are really compiled: the same answers as their sources give, and never those of older sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headrace import compiled
from tests.support.compiled_cases import CASES, FAMILIES
from tools import real_tools
from tools.compile_modules import digests, key_of, looked_at

SOME = (
    "headrace.model.message_ids",
    "headrace.wire.jetstream",
    "headrace.wire.nats_protocol",
    "headrace.wire.spliced_envelope",
)
ROOT = Path(compiled.ROOT)
pytestmark = [pytest.mark.needs("gcc"), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another place with the same sources, some of them compiled; what was compiled for them before is used again."""
    root = tmp_path_factory.mktemp("tree")
    for package in ("headrace", "services", "tools", "tests"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    key = key_of(SOME, digests(root, looked_at(root, SOME)))
    kept = real_tools.cache_directory() / "compiled" / key
    made = root / compiled.FOLDER / key
    if kept.is_dir():
        made.parent.mkdir(parents=True)
        shutil.copytree(kept, made)
    told = subprocess.run(
        [sys.executable, "-P", str(root / "tools" / "compile_modules.py"), *SOME], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    if not kept.is_dir():
        partial = kept.with_name(f"{key}.{os.getpid()}")
        shutil.copytree(made, partial)
        shutil.rmtree(kept, ignore_errors=True)
        partial.rename(kept)
    return root


def run(tree: Path, *arguments: str, asked: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree), compiled.VARIABLE: asked, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=check)


def test_compiled_and_pure_answer_the_same(tree: Path) -> None:
    pure, fast = (
        run(tree, "-m", "tests.support.compiled_cases", "1", asked=asked).stdout.rstrip("\n").split("\n")
        for asked in (compiled.OFF, compiled.REQUIRED)
    )
    assert pure[0] == "pure Python (HEADRACE_COMPILED=0)"
    assert fast[0].startswith("compiled ")
    assert len(pure) == 1 + CASES * len(FAMILIES)
    differing = [pair for pair in zip(pure[1:], fast[1:], strict=True) if pair[0] != pair[1]]
    assert not differing


ASK = "from headrace.wire import nats_protocol as n; from headrace import compiled; print(n.MAX_LINE, compiled.code())"


def test_an_edited_source_runs_at_once(tree: Path) -> None:
    assert run(tree, "-c", ASK, asked="").stdout.startswith("1048576 compiled ")
    source = tree / "headrace/wire/nats_protocol.py"
    whole, before = source.read_text(), source.stat()
    try:
        source.write_text(whole.replace("MAX_LINE = 1024 * 1024", "MAX_LINE = 1024 * 1025"))
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert source.stat().st_size == before.st_size
        edited = run(tree, "-c", ASK, asked="").stdout
        assert edited == "1049600 pure Python (headrace/wire/nats_protocol.py differs from what was compiled)\n"
        assert run(tree, "-c", ASK, asked=compiled.REQUIRED, check=False).returncode
    finally:
        source.write_text(whole)
    assert run(tree, "-c", ASK, asked="").stdout.startswith("1048576 compiled "), "the same sources again"
    # What the compiled ones import decides, too.
    (tree / "headrace/ports.py").write_text((tree / "headrace/ports.py").read_text() + "\n")
    assert "headrace/ports.py differs" in run(tree, "-c", ASK, asked="").stdout
