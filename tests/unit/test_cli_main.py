"""The command's door: lazy commands, exit statuses, errors without tracebacks."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from headrace.cli import main as door
from headrace.model.errors import HeadraceError, InvalidInput, NotFound, Unavailable


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
