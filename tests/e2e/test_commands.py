"""The commands of a first look, from outside, against a real mesh."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.http_caller import HttpRequest, call_all
from headrace.client import Client
from headrace.edge.data_directory import MESH_VARIABLE, read_endpoints
from headrace.edge.process_table import processes_with
from tests.support.commands import COMMAND, ROOT, Done, headrace
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh

FLOW = """
name: {name}
type: realtime
reply_timeout: 5s
steps:
  receive: {{component: {webhook}, function: receive, to: [shout]}}
  shout: {{component: ./shout, config: {{mark: "!"}}}}
"""
MANIFEST = """
name: {name}
functions:
  shout:
    kind: action
    config: {{type: object, properties: {{mark: {{type: string}}}}}}
"""
CODE = """
from headrace.sdk import Component, Context

component = Component()


@component.action
async def shout(message: dict, ctx: Context) -> None:
    ctx.log.info("shouting", word=message["word"])
    await ctx.reply({"shout": message["word"].upper() + ctx.config["mark"]})
"""


@dataclass(frozen=True)
class Project:
    """A flow file with a component folder of its own, under names that no other test uses, and a mesh."""

    name: str
    folder: Path
    data: Path

    @property
    def file(self) -> Path:
        return self.folder / "flow.yaml"

    @property
    def code(self) -> Path:
        return self.folder / "shout" / "component.py"

    def flow(self, verb: str, *options: str) -> Done:
        """`headrace flow VERB` of this flow."""
        return headrace("flow", verb, self.folder if verb == "apply" else self.name, *options, data=self.data)

    def run(self) -> str:
        """Applied, published, started; answers what `start` said."""
        self.flow("apply").ok()
        self.flow("publish").ok()
        return self.flow("start").ok()

    def status(self) -> Any:
        return self.flow("status", "--json").json()


@pytest.fixture
def project(module_mesh: RunningMesh, tmp_path: Path) -> Iterator[Project]:
    name = f"shout-{secrets.token_hex(4)}"
    (tmp_path / "shout").mkdir()
    (tmp_path / "shout" / "component.yaml").write_text(MANIFEST.format(name=name))
    (tmp_path / "shout" / "component.py").write_text(CODE)
    (tmp_path / "flow.yaml").write_text(FLOW.format(name=name, webhook=ROOT / "components" / "webhook"))
    made = Project(name, tmp_path, module_mesh.data)
    yield made
    if made.flow("show").status == 0:
        if made.status()["state"] != "STOPPED":
            made.flow("stop", "--drop", "--yes").ok()
        made.flow("delete", "--yes").ok()


def test_a_flow_from_file_to_answer_and_back(project: Project) -> None:
    name = project.name
    applied = project.flow("apply").ok()
    assert f"{name}: pushed revision 1\n" in applied
    assert applied.endswith(f"{name}: created, draft is ready\n")
    again = project.flow("apply").ok()
    assert f"{name}: unchanged, revision 1\n" in again
    assert again.endswith(f"{name}: unchanged\n")
    assert project.flow("publish").ok() == f"{name}: published version 1\n"
    assert project.flow("apply").ok().endswith(f"{name}: unchanged\n")

    started = project.flow("start").ok()
    assert started.startswith(f"{name}: RUNNING, version 1, deployment 1 (")
    url = started.split("webhook ")[1].strip()
    host, _, rest = url.removeprefix("http://").partition(":")
    port, _, path = rest.partition("/")
    request = HttpRequest(f"/{path}", '{"word": "hü"}'.encode())
    (answer,) = call_all([request], host=host, port=int(port), timeout_s=10)
    assert (answer.status, json.loads(answer.body)) == (200, {"shout": "HÜ!"})
    assert answer.headers["headrace-deployment"] == "1"
    again = project.flow("start").refused()
    assert "RUNNING" in again
    assert f"headrace flow stop {name}" in again

    text = project.flow("status").ok()
    assert text.startswith(f"{name}  RUNNING  version 1  deployment 1  profile fast\n")
    assert f"{name}@1" in text
    assert "policy" not in text
    policy = project.flow("status", "--policy").ok()
    assert "at most 10000 wait on an edge; rate limit none" in policy
    assert "retryable, TIMEOUT" in policy
    facts = project.status()
    assert facts["steps"][1]["policy"]["retry"]["attempts"] == 3
    assert facts["state"] == "RUNNING"
    assert [(step["step"], step["state"], step["pin"]["component"]) for step in facts["steps"]] == [
        ("receive", "RUNNING", "webhook"),
        ("shout", "RUNNING", name),
    ]
    assert name in headrace("flow", "list", data=project.data).ok()
    assert "DEPLOYMENT" in project.flow("show").ok()

    assert project.flow("stop").ok() == f"{name}: STOPPED, nothing waits\n"
    assert project.status()["state"] == "STOPPED"
    assert project.flow("delete", "--yes").ok() == f"{name}: deleted\n"


def test_a_flow_made_again_under_its_name_runs(project: Project) -> None:
    project.run()
    project.flow("stop").ok()
    project.flow("delete", "--yes").ok()
    assert "RUNNING, version 1, deployment 2 (" in project.run()


def test_what_differs_before_and_after_it_is_published(project: Project) -> None:
    name, data = project.name, project.data
    assert headrace("flow", "diff", project.file, "--exit-code", data=data).status == 1
    with Client(read_endpoints(data).api) as client:
        client.apply(project.file)
        assert "no version yet" in project.flow("versions").ok()
        assert headrace("flow", "diff", project.file, "--exit-code", data=data).ok().endswith("nothing differs\n")
        client.publish(name)
        project.file.write_text(project.file.read_text().replace("reply_timeout: 5s", "reply_timeout: 7s"))
        project.code.write_text(project.code.read_text().replace("upper", "lower"))
        differs = headrace("flow", "diff", project.file, data=data).ok()
        assert f"~ component {name}: the folder differs from revision 1\n" in differs
        assert '~ reply_timeout: "5s" -> "7s"\n' in differs
        client.apply(project.file)
        of_draft = project.flow("diff", "--json").json()
        assert of_draft["differences"] == [{"field": "reply_timeout", "old": '"5s"', "new": '"7s"'}]
        assert of_draft["about"] == f"{name}: the draft against version 1"
        client.publish(name)
        assert "version 2 against version 1" in project.flow("diff", "--from", "1", "--to", "2").ok()
        client.start(name)
    listed = project.flow("versions", "--json").json()["versions"]
    assert [(item["number"], item["running"], item["deployments"]) for item in listed] == [
        (1, False, []),
        (2, True, [1]),
    ]


def test_a_flow_is_drawn_and_its_name_completed(project: Project) -> None:
    name, data = project.name, project.data
    with Client(read_endpoints(data).api) as client:
        client.apply(project.file)
    assert f"└─▶ shout  {name}@latest" in project.flow("graph").ok()
    assert project.flow("graph", "--json").json()["reply_timeout"] == "5s"
    assert "nosuch" in headrace("flow", "graph", "nosuch", data=data).refused()
    checked = headrace("doctor", "--json", data=data).json()
    assert (checked["ok"], checked["findings"][-1]["check"]) == (True, "mesh")
    assert name in completed(f"headrace flow start --data {data} shout").splitlines()
    assert name in completed(f"headrace component show --data {data} shout").splitlines()


def completed(typed: str) -> str:
    """What bash would offer."""
    words = {"_HEADRACE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    environment = {**os.environ, **words}
    return subprocess.run(COMMAND, env=environment, capture_output=True, text=True, timeout=30, check=True).stdout


def begun(*typed: str) -> subprocess.Popen[bytes]:
    """A command that reads what is not all there yet."""
    return subprocess.Popen([*COMMAND, *typed], stdin=subprocess.PIPE, cwd=ROOT)


async def test_inject_and_logs(project: Project) -> None:
    name, data = project.name, project.data
    project.run()
    injected = headrace("inject", name, '{"word": "one"}', "--request-id", "i-1", data=data).ok()
    assert injected.startswith("execution ")
    again = headrace("inject", name, '{"word": "one"}', "--request-id", "i-1", "--json", data=data).json()
    assert again == {"execution_id": injected.split()[1], "duplicate": True}
    headrace("inject", name, "-", stdin='{"word": "two"}', data=data).ok()
    assert "body: " in headrace("inject", name, '{"word": ', data=data).refused()
    headrace("inject", "nosuch", '{"word": "no"}', data=data).refused()

    def shouted() -> bool:
        lines = headrace("logs", name, "--step", "shout", data=data).ok().splitlines()
        return [line.split("word=")[1].split()[0] for line in lines if "shouting" in line] == ["one", "two"]

    await eventually(shouted, within_s=15)
    last = headrace("logs", name, "--step", "shout", "--lines", "1", "--json", data=data).ok()
    line = json.loads(last)
    assert (line["message"], line["fields"]["word"], line["level"]) == ("shouting", "two", "info")
    assert (line["step"], line["source"]) == ("shout", "component")
    lines = '{"word": "three"}\n\n{"word": \n{"word": "four"}'
    many = headrace("inject", name, "--lines", "-", "--request-id", "week", stdin=lines, data=data)
    assert (many.status, many.out) == (1, "2 messages stored\n"), many
    assert "line 3: MALFORMED_JSON" in many.error
    repeated = headrace("inject", name, "--lines", "-", "--request-id", "week", "--json", stdin=lines, data=data)
    told = json.loads(repeated.out)
    assert (told["stored"], told["known"], told["refused"], told["refusals"][0]["line"]) == (2, 2, 1, 3)
    with begun("inject", name, "--lines", "-", "--data", str(data)) as slow:
        assert slow.stdin is not None
        slow.stdin.write(b'{"word": "five"}\n')
        slow.stdin.flush()
        await eventually(lambda: "five" in headrace("logs", name, "--step", "shout", data=data).ok(), within_s=15)
        slow.send_signal(signal.SIGINT)  # nothing more comes, and its input stays open
        assert slow.wait(10) == 130


def test_logs_follow_until_ctrl_c(project: Project) -> None:
    project.run()
    process = subprocess.Popen(
        [*COMMAND, "logs", project.name, "-f", "--step", "shout", "--data", str(project.data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        headrace("inject", project.name, '{"word": "later"}', data=project.data).ok()
        while "word=later" not in (line := process.stdout.readline()):
            assert line, "it ended"
        process.send_signal(2)
        _, error = process.communicate(timeout=5)
        assert (process.returncode, error) == (130, "")
    finally:
        process.kill()
        process.wait(5)


async def test_new_code_is_pushed_and_seen_but_not_run(project: Project) -> None:
    project.run()
    before = project.status()["steps"][1]["pin"]
    project.code.write_text(project.code.read_text().replace(".upper()", ".title()"))
    folder = project.code.parent
    pushed = headrace("component", "push", folder, "--tag", "next", "--json", data=project.data).json()
    assert pushed["created"]
    assert pushed["revision"]["number"] == 2
    await eventually(lambda: project.status()["steps"][1]["newer_revision"] == 2, within_s=20)
    assert project.status()["steps"][1]["pin"] == before
    assert "(2 is newer)" in project.flow("status").ok()
    assert f"flows/{project.name}/deployments/1" in headrace("component", "show", project.name, data=project.data).ok()
    assert "next=2" in headrace("component", "list", data=project.data).ok()


def test_refusals_name_what_is_wrong_and_what_to_type(project: Project) -> None:
    data = project.data
    for command in (["flow", "status"], ["flow", "start"], ["flow", "publish"], ["flow", "show"], ["logs"]):
        error = headrace(*command, "nosuch", data=data).refused()
        assert "nosuch" in error
        assert "headrace flow list" in error
    assert "nosuch" in headrace("inject", "nosuch", "{}", data=data).refused()
    assert "component push" in headrace("component", "show", "nosuch", data=data).refused()
    assert "component.yaml" in headrace("component", "push", project.folder, data=data).refused()
    project.flow("apply").ok()
    assert "publish" in project.flow("start").refused()
    assert "--yes" in project.flow("stop", "--drop").refused(2)
    assert "--yes" in project.flow("delete").refused(2)
    error = json.loads(headrace("flow", "status", "nosuch", "--json", data=data).refused())["error"]
    assert "NOT_FOUND" in error["reason"]
    assert error["next_step"]


def test_a_bad_flow_file_is_refused_with_its_line_and_nothing_is_made(project: Project) -> None:
    file, good = project.file, project.file.read_text()
    file.write_text(good.replace("to: [shout]", "to: [shuot]"))
    error = project.flow("apply").refused()
    line = file.read_text().splitlines()[5]
    assert f"{file}:6:{line.index('shuot') + 1}: steps.receive.to[0]: 'shuot' is not a step" in error
    assert "Did you mean `shout`?" in error
    file.write_text(good.replace("name: ", "name: [", 1))
    assert re.search(rf"{re.escape(str(file))}:\d+:\d+: not valid YAML", project.flow("apply").refused())
    missing = project.folder / "no.yaml"
    assert str(missing) in headrace("flow", "apply", missing, data=project.data).refused()
    file.write_text(good.replace('config: {mark: "!"}', 'config: {mark: "!"}, to: [shout]'))
    assert ":7:" in project.flow("apply").refused()  # before anything was pushed
    assert project.name in project.flow("show").refused()


def test_a_component_that_does_not_import_is_named_with_its_cause(project: Project) -> None:
    project.code.write_text("import nothing_of_that_name\n")
    done = project.flow("apply")
    if done.status == 0:
        project.flow("publish").ok()
        done = project.flow("start", "--timeout", "20")
    assert done.status == 1
    assert "nothing_of_that_name" in done.error


def test_where_nobody_answers_the_status_is_three(tmp_path: Path) -> None:
    for command in (["flow", "list"], ["logs", "orders"]):
        assert "headrace up" in headrace(*command, "--address", "127.0.0.1:1").refused(3)
    for command in (["component", "list"], ["inject", "orders", "{}"]):
        assert "headrace up" in headrace(*command, data=tmp_path / "none").refused(3)


def test_the_bench_measures_and_leaves_nothing(module_mesh: RunningMesh) -> None:
    data = module_mesh.data
    found = headrace("bench", "--seconds", "1", "--rate", "20", "--connections", "2", "--json", data=data).json()
    assert found["latency"]["answers"] > 0
    assert found["throughput"]["answers_per_s"] > 0
    assert [hop["step"] for hop in found["hops"]] == ["receive", "relay", "answer"]
    assert found["latency"]["errors"] == found["throughput"]["errors"] == {}
    assert "nosuch" in headrace("bench", "nosuch", data=data).refused()

    command = [*COMMAND, "bench", "--seconds", "60", "--data", str(data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stderr is not None
        while "latency at" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(2)
        assert process.communicate(timeout=30)[0] == ""
        assert process.returncode == 130
    finally:
        process.kill()
        process.wait(5)
    with Client(read_endpoints(data).api) as client:
        assert [flow.name for flow in client.list_flows() if "bench" in flow.name] == []


def test_a_detached_mesh_outlives_its_command_and_is_found_by_all_others(tmp_path: Path) -> None:
    data = tmp_path / "data"
    try:
        ends = headrace("up", "--detach", "--profile", "fast", "--json", data=data).json()
        assert headrace("status", "--json", data=data).json()["api"] == ends["api"]
        assert "in use by pid" in headrace("up", "--detach", data=data).refused()
        assert "in use by pid" in headrace("up", data=data).refused()
    finally:
        down = headrace("down", "--json", data=data)
    assert down.json() == {"data": str(data), "pid": ends["pid"], "state": "DOWN"}
    assert processes_with(MESH_VARIABLE, str(data)) == []
    assert headrace("down", data=data).status == 3
    taken = headrace("up", "--detach", "--api-port", "1", "--nats-server", "/bin/true", data=data)
    assert "nats-server" in taken.refused()
    assert processes_with(MESH_VARIABLE, str(data)) == []


def test_usage_errors_have_status_two() -> None:
    assert headrace("flow", "applly", "x").status == 2
    assert headrace("inject", "orders").status == 2
    assert headrace("inject", "orders", "{}", "--header", "no-equals").status == 2


def test_the_example_can_be_applied_from_wherever_it_lies(module_mesh: RunningMesh, tmp_path: Path) -> None:
    for part in ("examples/orders", "components/webhook"):
        shutil.copytree(ROOT / part, tmp_path / part)
    out = headrace("flow", "apply", tmp_path / "examples" / "orders", data=module_mesh.data).ok()
    assert sorted(line.split(":")[0] for line in out.splitlines()) == ["check", "notify", "orders", "price", "webhook"]
    headrace("flow", "delete", "orders", "--yes", data=module_mesh.data).ok()
