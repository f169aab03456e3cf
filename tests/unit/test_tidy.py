"""Rules of the repository, as a test."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = [path for folder in ("headrace", "services") for path in sorted((ROOT / folder).rglob("*.py"))]
CODE = [path for path in CODE if "headrace/api/" not in path.as_posix()]
LONGEST_FILE = 400
LONGEST_FUNCTION = 70
FORBIDDEN_NAMES = {"utils", "manager", "common", "helpers", "misc"}
# Places that own tasks: each keeps them, limits them and awaits them in its stop.
CREATE_TASK = re.compile(r"\b(asyncio\.)?(create_task|ensure_future)\(")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_modules_say_what_they_own(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES
    assert ast.get_docstring(ast.parse(path.read_text())), "no module docstring"


def test_no_banned_calls() -> None:
    banned = {
        "shell strings": re.compile(r"shell\s*=\s*True|os\.system\("),
        "pickle": re.compile(r"\b(import|from) (pickle|marshal|shelve)\b"),
        "unowned tasks": re.compile(r"^\s*(asyncio\.)?create_task\(|^\s*asyncio\.ensure_future\(", re.M),
        "bare except": re.compile(r"except:"),
    }
    found = [
        f"{relative(path)}: {what}" for path in CODE for what, rule in banned.items() if rule.search(path.read_text())
    ]
    assert not found


def test_how_long_a_soak_is_is_asked_in_one_place() -> None:
    """A test that took the number for its own rounds would run for days."""
    tests = sorted((ROOT / "tests").rglob("*.py"))
    asking = [relative(path) for path in tests if re.search(r"environ.*HEADRACE_SOAK\w+", path.read_text())]
    assert asking == ["tests/support/soak.py"]


def test_tests_never_sleep_to_wait() -> None:
    sleeping = re.compile(r"(time|asyncio)\.sleep\((?!0\))")  # sleep(0) is a turn of the loop
    allowed = {"tests/support/eventually.py"}
    found = [
        f"{relative(path)}:{number}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if sleeping.search(line) and "tidy: pace" not in line and relative(path) not in allowed
    ]
    assert not found, "wait with eventually; mark a load generator's pacing with `# tidy: pace`"


def test_generated_code_is_not_committed() -> None:
    tracked = subprocess.run(["git", "ls-files", "headrace/api"], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert tracked.stdout == ""


def test_lock_file_names_no_place() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "--hash=sha256:" in text
    assert "://" not in text
