"""The files of a new component: a manifest, typed functions, a flow that uses them, a test that passes."""

from __future__ import annotations

import shutil
from pathlib import Path

from headrace.model.errors import AlreadyExists, InvalidInput
from headrace.model.names import check_name

MANIFEST = """\
name: {name}
title: {title}
functions:
  handle: {{kind: action, title: Handle it}}
# requirements: [httpx]    # what the code imports besides the standard library, msgspec and headrace.sdk
"""

CODE = '''\
"""{title}."""

import msgspec

from headrace.sdk import Component, ComponentError, Context

component = Component()


class Request(msgspec.Struct):
    name: str
    times: int = 1


class Answer(msgspec.Struct):
    text: str


@component.action
async def handle(request: Request, ctx: Context) -> None:
    """Answers the caller. What does not fit `Request` never comes here: it is refused, naming the field."""
    if not 1 <= request.times <= 10:
        raise ComponentError("BAD_TIMES", f"times is {{request.times}}, not between 1 and 10", status=422)
    ctx.log.info("greeting", name=request.name)
    await ctx.reply(Answer(text=" ".join([f"Hello, {{request.name}}!"] * request.times)))
'''

FLOW = """\
# headrace dev {folder}    runs this flow, and each save of it and its component
name: {name}
type: realtime
reply_timeout: 5s    # how long a caller waits for its answer; without it callers get 202 at once
steps:
  receive: {{to: [handle]}}    # the mesh's own webhook: without component a trigger runs no process
  handle: {{component: .}}
"""

TEST = '''\
"""Run it with pytest; it needs no mesh."""

from pathlib import Path

from headrace.sdk.testing import CallResult, ComponentHarness, FlowHarness

FOLDER = Path(__file__).parent


def refusal(result: CallResult) -> str:
    assert result.error is not None
    return result.error.code


def test_a_caller_is_answered() -> None:
    with FlowHarness(FOLDER / "flow.yaml") as flow:
        result = flow.send({{"name": "Ada", "times": 2}})
        assert result.reply is not None
        assert result.reply.value == {{"text": "Hello, Ada! Hello, Ada!"}}


def test_what_does_not_fit_is_refused() -> None:
    with ComponentHarness(FOLDER) as harness:
        assert refusal(harness.call("handle", {{"name": "Ada", "times": 11}})) == "BAD_TIMES"
        assert refusal(harness.call("handle", {{"times": 1}})) == "BAD_INPUT"
'''

# What the component does not need at run time is no part of a revision, so that changing it makes no new one.
IGNORED = "flow.yaml\ntest_*.py\n"


def write_component(folder: Path) -> list[Path]:
    """Makes the folder with all its files, or nothing; answers the files. The last part of its path is the name.

    AlreadyExists where there is anything under that path; InvalidInput for a bad name or a place that cannot be
    written.
    """
    name = check_name("name", folder.name)
    words = {"name": name, "title": name.replace("-", " ").capitalize(), "folder": str(folder)}
    texts = {
        "component.yaml": MANIFEST.format(**words),
        "component.py": CODE.format(**words),
        "flow.yaml": FLOW.format(**words),
        f"test_{name.replace('-', '_')}.py": TEST.format(**words),
        ".headraceignore": IGNORED,
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError as error:
        raise AlreadyExists(
            f"{folder} is there already", reason="FOLDER_EXISTS", next_step="Choose another name, or remove it"
        ) from error
    except OSError as error:
        raise InvalidInput.at("name", str(folder), f"cannot be made: {error.strerror}") from error
    try:
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return [folder / file for file in texts]
