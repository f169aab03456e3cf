"""The command's door: lazy commands, exit statuses, errors without tracebacks."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from headrace.cli import main as door
from headrace.cli.examples import EXAMPLES
from headrace.model.errors import HeadraceError, InvalidInput, NotFound, Unavailable
from tools.commands_doc import PLACE, every_command, render


def invoke(monkeypatch: pytest.MonkeyPatch, failure: BaseException | None) -> int:
    """Runs a command that ends as told."""

    def command() -> None:
        """Do something."""
        if failure is not None:
            raise failure

    module = ModuleType("headrace_test_command")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "headrace_test_command", module)
    monkeypatch.setitem(door.COMMANDS, "something", ("headrace_test_command", "command", "Do something."))
    return door.run(["something"])


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (None, 0),
        (InvalidInput.at("port", 0, "is taken", next_step="Choose another"), 1),
        (NotFound("no such flow"), 1),
        (NotFound("no mesh runs", reason="MESH_NOT_RUNNING"), 3),
        (Unavailable("no mesh answers"), 3),
        (KeyboardInterrupt(), 130),
        (RuntimeError("surprise"), 1),
    ],
)
def test_exit_statuses_and_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: BaseException | None, status: int
) -> None:
    assert invoke(monkeypatch, failure) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2
    if isinstance(failure, HeadraceError):
        assert err.startswith(f"headrace: {failure.message}\n")


def test_wrong_usage_is_2_and_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.run(["stauts"]) == 2
    assert "Did you mean 'status'?" in capsys.readouterr().err
    assert door.run(["status", "--nonsense"]) == 2


def test_every_command_can_be_loaded_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in door.COMMANDS:
        assert door.run([name, "--help"]) == 0
        assert "--install-completion" not in capsys.readouterr().out


def test_the_epilog_lists_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in door.COMMANDS)
    assert "130 interrupted" in " ".join(text.split())


# What prints nothing, or nothing else, that a program would read.
NO_JSON = {"completion", "schema"}


def test_every_command_has_a_summary_and_an_example_and_answers_programs() -> None:
    commands = dict(every_command())
    assert set(EXAMPLES) == set(commands)
    assert [path for path, command in commands.items() if not command.help] == []
    options = {path: {name for option in command.params for name in option.opts} for path, command in commands.items()}
    assert {path for path, names in options.items() if "--json" not in names} == NO_JSON


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_is_a_command_that_can_be_typed(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0].partition(" < ")[0], comments=True)
    assert words[0] == "headrace"
    command: Any = door.make_command()
    rest, context = words[1:], command.make_context("headrace", words[1:])
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest[:], parent=context)


@pytest.mark.parametrize(
    ("shell", "typed", "offered"),
    [
        ("bash", "headrace flow res", "restart"),
        ("bash", "headrace comp", "component"),
        ("zsh", "headrace flow start --ti", "--timeout"),
        ("fish", "headrace flow drain-choice orders mo", "move"),
    ],
)
def test_completion_offers_commands_options_and_choices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str, typed: str, offered: str
) -> None:
    monkeypatch.setenv(door.COMPLETE_VARIABLE, f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", typed)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert door.run([]) == 0
    assert offered in capsys.readouterr().out


def test_a_real_bash_completes(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.run(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    ask = 'COMP_WORDS=(headrace flow res); COMP_CWORD=2; _headrace_completion headrace; echo "${COMPREPLY[@]}"'
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    command = ["bash", "--norc", "-c", f"{script}\n{ask}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env={"PATH": path})
    assert done.stdout.split() == ["restart", "resume"], done.stderr


def test_the_completion_script_asks_the_command_by_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert door.run(["completion", shell]) == 0
        assert f"{door.COMPLETE_VARIABLE}=complete_{shell}" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(EXAMPLES))
def test_an_option_that_is_not_there_is_wrong_usage(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.run([*path.split(), "--nonsense"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--nonsense" in err
    assert f"headrace {path} --help" in " ".join(err.split())


# What needs no mesh, or starts one.
NO_MESH = {
    *("up", "doctor", "dev", "demo", "completion", "component new", "flow validate", "schema"),
    *("credential new-key", "bench compare"),
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.keys() - NO_MESH))
def test_where_no_mesh_runs_the_status_is_three_also_for_programs(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEADRACE_ADDRESS", raising=False)
    words = shlex.split(EXAMPLES[path][0])[1:]
    options = {name for option in dict(every_command())[path].params for name in option.opts}
    words += ["--yes"] * ("--yes" in options and "--yes" not in words)
    assert door.run([*words, "--data", str(tmp_path / "none")]) == 3
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0]) == ("", f"headrace: no mesh runs on {tmp_path / 'none'}")
    assert "headrace up" in err
    assert door.run([*words, "--json", "--data", str(tmp_path / "none")]) == 3
    out, err = capsys.readouterr()
    assert (out, json.loads(err)["error"]["reason"]) == ("", "MESH_NOT_RUNNING")


def test_a_command_that_asks_the_mesh_imports_little() -> None:
    """Each of these costs 20 to 130 ms at the start of every command."""
    slow = ("yaml", "jsonschema", "pydantic", "starlette", "nats", "rich", "uvicorn", "typer.rich_utils")
    code = (
        "import sys; from headrace.cli import main; main.run(['flow', 'list', '--address', '127.0.0.1:1']);"
        f"print([name for name in {slow} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "[]\n", done.stderr


def test_the_document_of_commands_is_what_they_say() -> None:
    assert PLACE.read_text() == render(), "run: python -m tools.commands_doc"
