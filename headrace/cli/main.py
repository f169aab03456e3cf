"""The `headrace` command. Only the module of the command that is invoked is imported, so that help is fast."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

EPILOG = (
    "Exit status: 0 done; 1 refused or failed; 2 wrong usage; 3 no mesh (or broker) answers; 130 interrupted. "
    "Commands find the mesh by --address HOST:PORT, else by the data directory: --data DIR, $HEADRACE_DATA or "
    "./.headrace."
)

# name: (module, attribute, summary); the attribute is a typer.Typer or a function.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "up": ("headrace.cli.up", "up", "Run a mesh on this machine, in the foreground or detached."),
    "down": ("headrace.cli.down", "down", "End the mesh of a data directory; its data stays."),
    "status": ("headrace.cli.status", "status", "Processes, addresses, profile and flows."),
    "health": ("headrace.cli.health", "health", "Ask whether the mesh, a flow or a process serves."),
    "doctor": ("headrace.cli.doctor", "doctor", "Look whether a mesh can run here, and what to do where it cannot."),
    "dev": ("headrace.cli.dev", "dev", "Run a flow while you write it: every save runs within two seconds."),
    "component": ("headrace.cli.component", "app", "Push, list and show components and their revisions."),
    "flow": ("headrace.cli.flow", "app", "Apply, publish, start, stop and watch flows."),
    "top": ("headrace.cli.top", "top", "Watch rates, latencies, errors and what waits, step by step."),
    "inject": ("headrace.cli.inject", "inject", "Publish one message to a flow's trigger."),
    "logs": ("headrace.cli.logs", "logs", "What components and sidecars wrote."),
    "why": ("headrace.cli.why", "why", "Why a flow stands still or is slow, and what to type next."),
    "trace": ("headrace.cli.trace", "trace", "One execution as a waterfall; or the newest ones."),
    "dead-letters": (
        "headrace.cli.dead_letters",
        "app",
        "Messages that were given up: look, edit, replay, discard.",
    ),
    "step": ("headrace.cli.step", "app", "Ask one step's component, or run it on one input, away from the flow."),
    "stimuli": ("headrace.cli.stimuli", "app", "What started executions, where a flow keeps it: look, replay."),
    "credential": ("headrace.cli.credentials", "app", "What components log in with: create, list, update, delete."),
    "snapshot": ("headrace.cli.snapshots", "app", "What steps keep between messages: look, reset."),
    "schema": ("headrace.cli.flow_check", "schema", "JSON Schemas of flow and component files, for editors."),
    "demo": ("headrace.cli.demo", "demo", "Run the example flow with real orders and check every answer."),
    "bench": ("headrace.cli.bench", "app", "Measure the mesh that runs; compare two runs of `make bench`."),
    "rpc": ("headrace.cli.rpc", "rpc", "Call any method of the API with JSON, as grpcurl does."),
    "completion": ("headrace.cli.completion", "completion", "Print the script that completes commands in a shell."),
}
FAILED = 1
UNREACHABLE = 3
INTERRUPTED = 130
COMPLETE_VARIABLE = "_HEADRACE_COMPLETE"


def make_command() -> Any:
    """The root command group; knows its commands by name and loads one when it is invoked."""
    import typer
    from typer import _click
    from typer.core import TyperCommand, TyperGroup

    class LazyGroup(TyperGroup):
        """Help lists the summaries of COMMANDS; `resolve_command` imports what is run."""

        def list_commands(self, ctx: _click.Context) -> list[str]:
            return list(COMMANDS)

        def get_command(self, ctx: _click.Context, cmd_name: str) -> _click.Command | None:
            if cmd_name not in COMMANDS:
                return None
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name][2], rich_markup_mode=None)

        def resolve_command(
            self, ctx: _click.Context, args: list[str]
        ) -> tuple[str | None, _click.Command | None, list[str]]:
            self.commands = {name: TyperCommand(name) for name in COMMANDS}  # for "Did you mean"
            name, found, rest = super().resolve_command(ctx, args)
            return name, load(name) if name and found else found, rest

    def load(name: str) -> _click.Command:
        from headrace.cli.examples import add_examples

        module, attribute, _ = COMMANDS[name]
        target = getattr(import_module(module), attribute)
        if not isinstance(target, typer.Typer):
            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            single.command(name)(target)
            target = single
        target.rich_markup_mode = None
        target._add_completion = False
        command = typer.main.get_command(target)
        command.name = name
        add_examples(command, name)
        return command

    app = typer.Typer(
        cls=LazyGroup,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        epilog=EPILOG,
        context_settings={"help_option_names": ["--help", "-h"]},
    )

    @app.callback()
    def headrace(
        version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    ) -> None:
        """Real-time integration flows: fast, nothing lost, code pinned, every hop measured."""

    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a command and exits with its status; errors are one or two lines on standard error."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["--version"]:
        from headrace import __version__

        print(f"headrace {__version__}")
        return
    sys.exit(run(given))


def run(arguments: list[str]) -> int:
    """Runs a command; answers its exit status."""
    from headrace.model.errors import HeadraceError, Unavailable

    if COMPLETE_VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    try:
        make_command()(args=arguments, prog_name="headrace", standalone_mode=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else FAILED if ended.code else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output is gone: nobody to tell
        return FAILED
    except HeadraceError as error:
        from headrace.cli.invocation import print_error

        print_error(error, as_json="--json" in arguments)
        return UNREACHABLE if isinstance(error, Unavailable) or error.reason == "MESH_NOT_RUNNING" else FAILED
    except Exception as error:
        print_unexpected(error)
        return FAILED
    return 0


def print_unexpected(error: Exception) -> None:
    """An error nobody foresaw: its kind and place in two lines; all of it with HEADRACE_TRACEBACK=1."""
    import traceback

    if os.environ.get("HEADRACE_TRACEBACK"):
        traceback.print_exception(error)
        return
    place = traceback.extract_tb(error.__traceback__)[-1]
    print(f"headrace: unexpected {type(error).__name__}: {error}", file=sys.stderr)
    print(f"  at {place.name} ({place.filename}:{place.lineno}); all of it with HEADRACE_TRACEBACK=1", file=sys.stderr)


if __name__ == "__main__":
    main()
