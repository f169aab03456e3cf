"""Which modules may be compiled, and when a process uses what was compiled: never for other sources than its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from headrace import compiled
from headrace.compiled import CompiledModules
from tools.compile_modules import looked_at
from tools.compiled_modules import MODULES, stranded, unfit

ROOT = Path(compiled.ROOT)
HOT = "headrace.wire.hot"


def source_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


@pytest.mark.parametrize("module", MODULES)
def test_a_listed_module_means_the_same_when_it_is_compiled(module: str) -> None:
    assert not list(unfit(source_of(module).read_text())), "see tools/compiled_modules.py"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            "import msgspec\nclass A(msgspec.Struct):\n    error: str | None = None\nread = msgspec.json.Decoder(A)",
            "line 3: A is decoded, so it is to be in a module that is not compiled",
        ),
        ("import msgspec\nclass A(msgspec.Struct):\n    error: str | None = None", ""),
        ("import msgspec\nclass A(msgspec.Struct):\n    error: str = ''\nread = msgspec.json.Decoder(A)", ""),
        (
            "def f():\n  try:\n    pass\n  except KeyError as error:\n    pass\n  except OSError as error:\n    pass",
            "line 6: `error` is KeyError in another clause of the function",
        ),
        (
            "def f():\n  try:\n    pass\n  except KeyError as absent:\n    pass\n  except OSError as error:\n    pass",
            "",
        ),
        ("class A:\n    def f(self):\n        self._thread = 1", "line 3: C takes `_thread` for a word of its own"),
    ],
)
def test_what_would_mean_something_else(source: str, problem: str) -> None:
    assert list(unfit(source)) == ([problem] if problem else [])


def test_no_class_has_a_compiled_base_and_is_not_compiled() -> None:
    packages = ("headrace", "services", "benchmarks", "components", "examples", "tests")
    assert not list(stranded(ROOT, MODULES, packages))
    assert list(stranded(ROOT, [*MODULES, "headrace.sdk.event_frame"])) == [
        "headrace/sdk/lot_frame.py: LotFrame is not compiled and its base EventFrame is"
    ]


def test_all_that_a_module_imports_decides_what_it_is_compiled_to() -> None:
    files = {str(path.relative_to(ROOT)) for path in looked_at(ROOT, ["headrace.wire.jetstream"])}
    assert {"headrace/wire/jetstream.py", "headrace/wire/jetstream_answers.py", "headrace/ports.py"} <= files
    assert {"headrace/__init__.py", "headrace/wire/__init__.py", "headrace/model/step_snapshot.py"} <= files


class Build:
    """What `make fast` leaves, with an extension that is none: it is found, and never loaded here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root / "headrace/wire/hot.py"
        self.source.parent.mkdir(parents=True)
        self.source.write_text("ANSWER = 1\n")
        self.folder = root / compiled.FOLDER
        self.whole = self.folder / "0123456789abcdef"
        self.whole.mkdir(mode=0o755, parents=True)
        for folder in (root / "build", self.folder, self.whole):
            folder.chmod(0o755)
        for name in (HOT, compiled.LIBRARY):
            (self.whole / f"{name}.so").write_bytes(b"")
            (self.whole / f"{name}.so").chmod(0o755)
        self.manifest = self.folder / f"{compiled.SUFFIX}.json"
        self.write()

    def write(self, **changes: object) -> None:
        said = {
            "key": self.whole.name,
            "python": sys.version,
            "modules": {name: f"{name}.so" for name in (HOT, compiled.LIBRARY)},
            "sources": {"headrace/wire/hot.py": sha256(self.source.read_bytes()).hexdigest()},
        }
        self.manifest.write_text(json.dumps(said | changes))
        self.manifest.chmod(0o644)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    return Build(tmp_path)


def test_it_is_used_while_it_matches(build: Build) -> None:
    modules = CompiledModules(str(build.root))
    spec = modules.find_spec(HOT)
    assert spec is not None
    assert spec.origin == str(build.whole / f"{HOT}.so")
    assert (modules.key, modules.reason) == (build.whole.name, "")
    assert modules.find_spec("headrace.wire.other") is None
    assert modules.find_spec("nats") is None


def touch_up(build: Build) -> None:
    """Another content of the same size and age."""
    before = build.source.stat()
    build.source.write_text("ANSWER = 2\n")
    os.utime(build.source, ns=(before.st_atime_ns, before.st_mtime_ns))


def make_link(build: Build) -> None:
    target = build.root / "elsewhere.so"
    target.write_bytes(b"")
    (build.whole / f"{HOT}.so").unlink()
    (build.whole / f"{HOT}.so").symlink_to(target)


REFUSED: dict[str, tuple[Callable[[Build], object], str]] = {
    "edited": (touch_up, "headrace/wire/hot.py differs from what was compiled"),
    "gone": (lambda build: build.source.unlink(), "headrace/wire/hot.py differs from what was compiled"),
    "never built": (lambda build: build.manifest.unlink(), "nothing was compiled for this interpreter"),
    "another python": (lambda build: build.write(python="3.9.1 (main)"), "it was compiled for Python 3.9.1"),
    "half a manifest": (lambda build: build.manifest.write_text('{"key": '), "cannot be read"),
    "no manifest": (lambda build: build.manifest.write_text("[]"), "is no manifest"),
    "half a build": (lambda build: (build.whole / f"{HOT}.so").unlink(), "the build is not whole"),
    "writable for others": (lambda build: build.whole.chmod(0o777), "can be written by others"),
    "writable for a group": (lambda build: (build.whole / f"{HOT}.so").chmod(0o775), "can be written by others"),
    "a writable folder above": (lambda build: (build.root / "build").chmod(0o777), "can be written by others"),
    "a writable manifest": (lambda build: build.manifest.chmod(0o666), "can be written by others"),
    "a link": (make_link, "is neither a file nor a folder"),
    "a path out of it": (lambda build: build.write(modules={HOT: "../../x.so"}), "is no manifest"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_not_used_otherwise_and_says_why(build: Build, case: str) -> None:
    change, reason = REFUSED[case]
    change(build)
    modules = CompiledModules(str(build.root))
    assert modules.find_spec(HOT) is None
    assert not modules.decide()
    assert reason in modules.reason
    assert modules.find_spec(HOT) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_belongs_to_somebody_else_is_not_loaded(build: Build) -> None:
    os.chown(build.whole, 12345, 12345)
    modules = CompiledModules(str(build.root))
    assert not modules.decide()
    assert "belongs to another user" in modules.reason


def test_it_can_be_turned_off_and_be_asked_for(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.VARIABLE, compiled.OFF)
    modules = CompiledModules(str(build.root))
    assert modules.find_spec(HOT) is None
    assert modules.reason == "HEADRACE_COMPILED=0"
    monkeypatch.setenv(compiled.VARIABLE, compiled.REQUIRED)
    assert CompiledModules(str(build.root)).decide()
    touch_up(build)
    with pytest.raises(ImportError, match=r"hot.py differs from what was compiled. Try: make fast"):
        CompiledModules(str(build.root)).find_spec(HOT)


def test_a_decision_holds_for_the_life_of_a_process(build: Build) -> None:
    modules = CompiledModules(str(build.root))
    assert modules.decide()
    touch_up(build)
    assert modules.decide(), "modules of two states never meet in one process"
    assert not CompiledModules(str(build.root)).decide()
