"""A mesh that cannot start, or loses what it stands on. `headrace up` ends with status 1 and two lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bad_inputs.row import Row, Section

UP = "`headrace up`"
UP_TESTS = "tests/integration/test_up.py::"
GATEWAY_FAULTS = "tests/integration/gateway/test_faults.py::"


def newer(data: Path) -> list[str]:
    data.mkdir()
    (data / "layout").write_text("99\n")
    return []


def not_writable(data: Path) -> list[str]:
    data.mkdir()
    (data / "lock").symlink_to("/proc/version")  # which nobody can write, also root
    return []


def a_file(data: Path) -> list[str]:
    data.touch()
    return []


def row(id: str, what: str, reason: str, says: str, next_step: str, give: Callable[[Path], list[str]]) -> Row:
    return Row(id, what, UP, "INVALID_ARGUMENT", reason, "data", (says,), next_step, give)


def elsewhere(
    id: str, what: str, code: str, reason: str, says: str, next_step: str, shown_by: str, door: str = UP
) -> Row:
    return Row(id, what, door, code, reason, "", (says,), next_step, shown_by=shown_by)


INVALID, AWAY = "INVALID_ARGUMENT", "UNAVAILABLE"
SECTION = Section(
    "Mesh",
    "A mesh that cannot start leaves no process and no half-made data directory behind; one that loses its broker waits for "
    "it and loses nothing.",
    (
        row("data-not-a-directory", "a data directory that is a file", "DATA_DIRECTORY_UNUSABLE", "cannot be used", "a directory that you can write to", a_file),
        row("data-not-writable", "a data directory that cannot be written", "DATA_DIRECTORY_UNUSABLE", "cannot be used", "a directory that you can write to", not_writable),
        Row("data-newer", "a data directory of a newer version", UP, "FAILED_PRECONDITION", "DATA_DIRECTORY_NEWER", "", ("was written by a newer Headrace (layout 99, this one knows 1)",), "Use that Headrace", newer),
        elsewhere("data-in-use", "a data directory in use", "FAILED_PRECONDITION", "DATA_DIRECTORY_IN_USE", "is in use by pid", "headrace down --data", UP_TESTS + "test_a_second_up_on_the_same_data_is_refused"),
        elsewhere("port-taken", "a port that is taken", INVALID, "PORT_TAKEN", "is taken on 127.0.0.1", "Choose another --api-port", UP_TESTS + "test_a_port_that_is_taken_is_named"),
        elsewhere("run-directory-of-others", "a run directory that others can enter", INVALID, "INVALID_INPUT", "belongs to you alone", "Remove it", UP_TESTS + "test_a_run_directory_of_somebody_elses_is_refused"),
        elsewhere("broker-too-old", "a broker that is too old", INVALID, "BROKER_TOO_OLD", "older than 2.15", "nats-server", UP_TESTS + "test_a_broker_that_is_too_old_is_refused"),
        elsewhere("broker-does-not-start", "a broker that ends at once, for example on a full disk", AWAY, "PROCESS_NOT_STARTED", "broker did not start (exit status 1): disk is full", "broker.log", UP_TESTS + "test_a_broker_that_does_not_start_says_why"),
        elsewhere("broker-unreachable", "a broker that is not there", AWAY, "BROKER_UNREACHABLE", "no NATS server answers at", "Check --nats", UP_TESTS + "test_a_broker_that_is_not_there_is_named"),
        elsewhere("broker-credentials", "wrong credentials of a broker", INVALID, "BROKER_CREDENTIALS", "does not let us in; no password is shown", "Correct user and password", "tests/integration/test_data_directory.py::test_wrong_credentials_are_refused_and_no_password_is_shown"),
        elsewhere("broker-no-jetstream", "a broker without JetStream", INVALID, "NO_JETSTREAM", "has no JetStream", "nats-server with -js", "tests/integration/test_data_directory.py::test_a_server_that_will_not_do_is_refused"),
        elsewhere("broker-gone", "a broker that is gone for a while", AWAY, "-", "waited for; nothing acknowledged is lost", "-", "tests/integration/test_sidecar_trouble.py::test_a_broker_restart_under_load_loses_and_doubles_nothing", "a running mesh"),
        elsewhere("broker-gone-for-callers", "a caller while the broker is gone", "503", "BROKER_UNAVAILABLE", "answered by the caller's deadline", "`retry-after`", GATEWAY_FAULTS + "test_no_broker_until_the_deadline_is_an_error_in_time", "HTTP"),
        elsewhere("disk-full", "a full disk while a deployment is prepared", "RESOURCE_EXHAUSTED", "DISK_FULL", "No space left on device; what runs goes on", "Make room on the agent's disk", "tests/robustness/test_disk_full.py::test_a_full_disk_fails_the_publish_and_leaves_what_runs", "`headrace flow publish`"),
        elsewhere("store-full", "a broker whose store is full", "-", "-", "waited for; callers get 429", "-", "tests/integration/test_sidecar_broker_trouble.py::test_a_full_store_is_waited_for", "a running mesh"),
        elsewhere("clocks", "clocks that are an hour off, or jump", "-", "-", "nothing is lost, doubled or delayed", "-", "tests/robustness/test_clocks.py::test_clocks_that_jump_lose_double_and_delay_nothing", "a running mesh"),
        elsewhere("no-mesh", "a command where no mesh runs", AWAY, "MESH_NOT_RUNNING", "no mesh runs on", "headrace up", UP_TESTS + "test_status_without_a_mesh_says_how_to_start_one", "any command"),
    ),
)  # fmt: skip
