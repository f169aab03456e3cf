"""The edit loop as a person lives it: a new component, its test, `headrace dev`, saves right and wrong, Ctrl-C."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.http_caller import HttpRequest, call_all
from tests.support.commands import ROOT, headrace
from tests.support.dev_process import DevProcess
from tests.support.mesh import RunningMesh

pytestmark = pytest.mark.timeout(180)


def asked(call: str, body: object) -> Any:
    """The answer to the request that `dev` told, with this body."""
    url = shlex.split(call)[-1]
    host, _, rest = url.removeprefix("http://").partition(":")
    port, _, path = rest.partition("/")
    request = HttpRequest(f"/{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    (answer,) = call_all([request], host=host, port=int(port), timeout_s=10)
    return answer.status, json.loads(answer.body)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_new_component_is_run_edited_broken_and_mended(tmp_path: Path) -> None:
    folder, data = tmp_path / "hello-there", tmp_path / "data"
    made = headrace("component", "new", folder, "--json").json()
    assert {Path(file).name for file in made["files"]} == {path.name for path in folder.iterdir()}
    assert "is there already" in headrace("component", "new", folder).refused()
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    assert "2 passed" in subprocess.run(tests, capture_output=True, text=True, cwd=tmp_path, timeout=60).stdout

    code = folder / "component.py"
    with DevProcess(folder, data) as dev:
        assert dev.until("mesh")["data"] == str(data)
        ran = dev.until("ran")
        call = ran["try"]
        assert ran["action"] == "started"
        assert json.loads(shlex.split(call)[2]) == {"name": "..."}  # fits the function's type
        assert asked(call, {"name": "Ada"}) == (200, {"text": "Hello, Ada!"})
        while dev.until("log")["message"] != "greeting":
            pass

        edit(code, "Hello, ", "Servus, ")
        assert [Path(file).name for file in dev.until("saved")["files"]] == ["component.py"]
        assert dev.until("ran")["action"] == "switched"
        assert asked(call, {"name": "Ada"}) == (200, {"text": "Servus, Ada!"})

        edit(code, "class Answer", "clas Answer")
        failed = dev.until("failed")
        assert f'File "{code}", line 15' in failed["error"]["message"]
        assert failed["still_runs"]
        assert asked(call, {"name": "Ada"}) == (200, {"text": "Servus, Ada!"})
        edit(code, "clas Answer", "class Answer")
        assert dev.until("ran")["action"] == "unchanged"

        flow = folder / "flow.yaml"
        edit(flow, "to: [handle]", "to: [handel]")
        assert f"{flow}:6" in dev.until("failed")["error"]["message"]
        edit(flow, "to: [handel]", "to: [handle]")
        dev.until("ran")
        edit(code, '"""Hello there."""', '"""Hello there."""\n\nraise SystemExit("not today")')
        assert "not today" in dev.until("failed")["error"]["message"]

        edit(code, '\n\nraise SystemExit("not today")', "")
        edit(flow, "name: hello-there", "name: hello-again")
        renamed = dev.until("ran")
        assert (renamed["flow"], renamed["action"]) == ("hello-again", "started")
        assert asked(renamed["try"], {"name": "Ada"}) == (200, {"text": "Servus, Ada!"})

        another_session_leaves_the_first_alone(tmp_path, data, call)
        assert dev.interrupt() == 0
    assert dev.past[-1]["event"] != "left"
    assert dev.until("left")["event"] == "left"
    assert "headrace up" in headrace("flow", "list", data=data).refused(3)  # its mesh ended with it


def another_session_leaves_the_first_alone(folder: Path, data: Path, call: str) -> None:
    """On the mesh that runs already; at its end its own flow stops, and nothing else."""
    headrace("component", "new", folder / "second").ok()
    with DevProcess(folder / "second", data, "--no-logs") as dev:
        assert dev.until("ran")["action"] == "started"
        assert [event["event"] for event in dev.past] == ["pushed", "ran"]
        assert dev.interrupt() == 0
    states = {item["name"]: item["state"] for item in headrace("flow", "list", "--json", data=data).json()["flows"]}
    assert states == {"flows/hello-again": "RUNNING", "flows/hello-there": "RUNNING", "flows/second": "STOPPED"}
    assert asked(call, {"name": "Ada"})[0] == 200


def test_one_command_takes_an_empty_mesh_to_an_answer_and_a_push_says_who_keeps_what(
    module_mesh: RunningMesh, tmp_path: Path
) -> None:
    data, folder = module_mesh.data, tmp_path / "price"
    headrace("component", "new", folder).ok()
    ran = headrace("flow", "apply", folder, "--run", data=data).ok()
    assert "price: pushed revision 1\nprice: created, draft is ready\nprice: RUNNING, version 1, deployment 1\n" in ran
    url = ran.partition("webhook ")[2].strip()
    assert asked(f"curl {url}", {"name": "Ada"}) == (200, {"text": "Hello, Ada!"})
    again = headrace("flow", "apply", folder, "--run", "--json", data=data).json()
    assert (again["action"], again["change"], again["status"]["state"]) == ("unchanged", "unchanged", "RUNNING")

    edit(folder / "component.py", "Hello, ", "Servus, ")
    pushed = headrace("component", "push", folder, data=data).ok()
    assert "  flow price keeps revision 1; `headrace flow restart price` takes 2\n" in pushed
    assert asked(f"curl {url}", {"name": "Ada"}) == (200, {"text": "Hello, Ada!"})
    headrace("flow", "restart", "price", data=data).ok()
    assert asked(f"curl {url}", {"name": "Ada"}) == (200, {"text": "Servus, Ada!"})
    assert "keeps" not in headrace("component", "push", folder, data=data).ok()

    # A version that names a revision keeps it through restarts: another command takes the new one.
    edit(folder / "flow.yaml", "{component: .}", "{timeout: 20s, component: price@2}")
    headrace("flow", "apply", folder, "--run", data=data).ok()
    edit(folder / "component.py", "Servus, ", "Moin, ")
    kept = headrace("component", "push", folder, "--json", data=data).json()["kept"]
    assert kept == [
        {
            "flow": "price",
            "revision": 2,
            "takes": "headrace component upgrade price && headrace flow publish price",
        }
    ]
    refused = headrace("flow", "publish", "price", data=data).refused()
    assert "no draft" in refused
    assert "headrace flow apply FILE" in refused

    assert "pinned by" in headrace("component", "delete", "price@2", "--yes", data=data).refused()
    assert "flows/price" in headrace("component", "delete", "price", data=data).refused()
    assert headrace("component", "delete", "price@3", "--yes", data=data).ok() == "price: deleted revision 3\n"
    headrace("flow", "stop", "price", data=data).ok()
    headrace("flow", "delete", "price", "--yes", data=data).ok()


def test_dev_refuses_what_it_cannot_watch(module_mesh: RunningMesh, tmp_path: Path) -> None:
    assert "no.yaml" in headrace("dev", tmp_path / "no.yaml", data=module_mesh.data).refused()
    assert "127.0.0.1:1" in headrace("dev", ROOT / "examples" / "ticker", "--address", "127.0.0.1:1").refused(3)
