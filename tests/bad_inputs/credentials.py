"""Credentials that cannot be kept, used, deleted or tried. The shared mesh has none but what a row makes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from headrace.client import AsyncClient
from headrace.model.credential import MAX_VALUE_BYTES
from tests.bad_inputs.row import Row, Section

Deed = Callable[[AsyncClient], Awaitable[object]]
INPUT, STATE = "INVALID_ARGUMENT", "FAILED_PRECONDITION"
CREATE = "headrace credential create"
LIFE = "tests/e2e/test_credentials.py::test_a_new_value_reaches_what_runs_only_by_a_refresh"
KEYS = "tests/e2e/test_credential_secrecy.py::test_a_lost_key_stops_nothing_that_runs_and_a_switch_takes_the_newest"
ASKED = "tests/e2e/test_credentials.py::test_steps_are_asked_and_run_away_from_the_flow"


def row(
    id: str, what: str, door: str, code: str, reason: str, says: str, next_step: str, deed: Deed, field: str = ""
) -> Row:
    return Row(id, what, f"`{door}`", code, reason, field, (says,), next_step, deed)


async def expired(client: AsyncClient) -> None:
    await client.create_credential("old", {"a": "b"}, expires_at=1.0)
    try:
        await client.run_step("running", "receive", b"{}", credential="old")
    finally:
        await client.delete_credential("old")


async def stale(client: AsyncClient) -> None:
    made = await client.create_credential("stale", {"a": "b"})
    try:
        await client.update_credential("stale", {"a": "c"})
        await client.update_credential("stale", {"a": "d"}, etag=made.etag)
    finally:
        await client.delete_credential("stale")


async def taken(client: AsyncClient) -> None:
    await client.create_credential("taken", {"a": "b"})
    try:
        await client.create_credential("taken", {"a": "c"})
    finally:
        await client.delete_credential("taken")


SECTION = Section(
    "Credentials",
    "No answer shows any part of a value. A refused change leaves the version that there was; flows that run go on.",
    (
        row("credential-too-large", "a value of 100 kB", CREATE, INPUT, "VALUE_TOO_LARGE", f"more than {MAX_VALUE_BYTES}", "Keep only what is secret", lambda client: client.create_credential("large", {"a": "x" * 100_000}), "credential.value"),
        row("credential-empty", "a value without fields", CREATE, INPUT, "BAD_CREDENTIAL", "has no field", "Give a JSON object", lambda client: client.create_credential("empty", {}), "credential.value"),
        row("credential-bad-field", "a field whose name is none", CREATE, INPUT, "BAD_CREDENTIAL", "whose name is none", "Letters, digits", lambda client: client.create_credential("odd", {"a b": "c"}), "credential.value"),
        row("credential-bad-name", "a credential's name with a slash", CREATE, INPUT, "BAD_NAME", "is not a name", "lower-case", lambda client: client.create_credential("a/b", {"a": "b"}), "credential_id"),
        row("credential-taken", "create a credential that is there", CREATE, "ALREADY_EXISTS", "CREDENTIAL_EXISTS", "there is a credential 'taken' already", "headrace credential update taken", taken),
        row("credential-unknown", "a credential there is not", "GetCredential", "NOT_FOUND", "CREDENTIAL_NOT_FOUND", "there is no credential 'nowhere'", "headrace credential create nowhere", lambda client: client.get_credential("nowhere")),
        row("credential-etag", "an etag of the past", "UpdateCredential", "ABORTED", "ETAG_MISMATCH", "was changed meanwhile", "headrace credential show stale", stale),
        Row("credential-unknown-in-flow", "a step that names a credential there is not", "`headrace flow publish`", INPUT, "CREDENTIAL_NOT_FOUND", "steps[1].credential", ("'shop' is not a credential of this workspace",), "headrace credential create shop", shown_by="tests/e2e/test_credentials.py::test_a_step_gets_its_credential_and_keeps_it"),
        row("credential-unknown-tried", "try a step with a credential there is not", "headrace step run", INPUT, "CREDENTIAL_NOT_FOUND", "'nowhere' is not a credential of this workspace", "headrace credential create nowhere", lambda client: client.run_step("running", "receive", b"{}", credential="nowhere"), "target.credential"),
        row("credential-expired", "a step with an expired credential", "headrace step run", INPUT, "CREDENTIAL_EXPIRED", "has expired", "headrace credential update old", expired, "target.credential"),
        row("refresh-stopped", "refresh the credentials of a stopped flow", "headrace flow refresh-credentials", STATE, "NOT_RUNNING", "does not run: its next start takes the newest", "headrace flow start resting", lambda client: client.refresh_credentials("resting")),
        row("refresh-without", "refresh a flow that names no credential", "headrace flow refresh-credentials", STATE, "NO_CREDENTIAL", "names no credential", "headrace flow show running", lambda client: client.refresh_credentials("running")),
        row("step-run-unknown", "run a step there is not", "headrace step run", "NOT_FOUND", "STEP_NOT_FOUND", "there is no step 'nope'", "Name one", lambda client: client.run_step("running", "nope", b"{}")),
        row("step-run-malformed", "run a step on JSON that is none", "headrace step run", INPUT, "MALFORMED_JSON", "is not JSON", "another content type", lambda client: client.run_step("running", "receive", b"{nonsense"), "body"),
        row("step-run-never-ran", "run a step of a flow that never ran", "headrace step run", STATE, "NEVER_RAN", "none of its steps is pinned", "--draft", lambda client: client.run_step("drafted", "receive", b"{}")),
        Row("credential-wrong", "a credential that the component refuses", "`headrace flow refresh-credentials`", STATE, "CREDENTIAL_REFUSED", "", ("keeps version 2 of credential", "the component's words"), "headrace credential update", shown_by=LIFE),
        Row("credential-used", "delete a credential that a deployment uses", "`headrace credential delete`", STATE, "CREDENTIAL_IN_USE", "", ("is used by flows/frozen/deployments/1",), "headrace flow stop", shown_by="tests/e2e/test_credentials.py::test_a_step_gets_its_credential_and_keeps_it"),
        Row("credential-rotated", "a credential that changes during a switch", "`headrace flow restart`", "-", "-", "", ("the new deployment keeps the version it began with",), "headrace flow refresh-credentials", shown_by=KEYS),
        Row("key-file-lost", "a key file that is lost", "`headrace credential create`", STATE, "CREDENTIAL_KEY_MISSING", "", ("cannot be read", "what runs goes on"), "Put the file back", shown_by=KEYS),
        Row("key-file-open", "a key file that others can read", "`headrace credential create`", STATE, "CREDENTIAL_KEY_UNUSABLE", "", ("others may read it (mode 0644)",), "chmod 600", shown_by=KEYS),
        Row("verify-dies", "a verify hook that ends its process", "`headrace credential verify`", "-", "COMPONENT_EXITED_IN_VERIFY", "", ("not asked", "ended (exit status 7)"), "", shown_by=ASKED),
    ),
)  # fmt: skip
