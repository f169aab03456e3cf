"""Verbs that do not fit the state. The shared mesh has `running` (started), `resting` (a version, stopped) and
`drafted` (no version yet)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from headrace.api.attachment.v1.attachment_pb2 import Attachment
from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from tests.bad_inputs.row import Row, Section

Deed = Callable[[AsyncClient], Awaitable[object]]
STATE = "FAILED_PRECONDITION"


def row(
    id: str, what: str, door: str, code: str, reason: str, says: str, next_step: str, deed: Deed, field: str = ""
) -> Row:
    return Row(id, what, f"`{door}`", code, reason, field, (says,), next_step, deed)


SECTION = Section(
    "State",
    "A refused verb changes nothing, and names the verb that fits.",
    (
        row("start-started", "start a started flow", "StartFlow", STATE, "WRONG_STATE", "is RUNNING", "headrace flow", lambda client: client.start("running")),
        row("delete-running", "delete a running flow", "DeleteFlow", STATE, "WRONG_STATE", "RUNNING", "headrace flow stop running", lambda client: client.delete_flow("running")),
        row("stop-stopped", "stop a stopped flow", "StopFlow", STATE, "WRONG_STATE", "is STOPPED", "headrace flow", lambda client: client.stop("resting")),
        row("restart-stopped", "restart a stopped flow", "RestartFlow", STATE, "WRONG_STATE", "is STOPPED", "headrace flow start resting", lambda client: client.restart("resting")),
        row("suspend-stopped", "suspend a stopped flow", "SuspendFlow", STATE, "WRONG_STATE", "is STOPPED", "headrace flow", lambda client: client.suspend("resting")),
        row("resume-running", "resume a flow that runs", "ResumeFlow", STATE, "WRONG_STATE", "is RUNNING", "headrace flow", lambda client: client.resume("running")),
        row("scale-stopped", "scale a step of a stopped flow", "ScaleStep", STATE, "WRONG_STATE", "is STOPPED", "headrace flow", lambda client: client.scale("resting", "receive", 2)),
        row("set-type-running", "change the type of a flow that runs", "SetFlowType", STATE, "WRONG_STATE", "is RUNNING: cannot change its type", "headrace flow stop running", lambda client: client.set_type("running", "ordinary")),
        row("draft-type-running", "a draft of another type while the flow runs", "UpdateDraft", STATE, "WRONG_STATE", "is RUNNING: cannot change its type", "headrace flow stop running", lambda client: client.update_draft("running", ORDINARY_SPEC)),
        row("start-without-version", "start a flow that was never published", "StartFlow", STATE, "NOT_PUBLISHED", "no version", "headrace flow publish drafted", lambda client: client.start("drafted")),
        row("publish-without-draft", "publish without a draft", "PublishFlow", STATE, "NO_DRAFT", "no draft", "headrace flow", lambda client: client.publish("resting")),
        row("unknown-version", "start a version there is not", "StartFlow", "NOT_FOUND", "VERSION_NOT_FOUND", "no version 99", "headrace flow show", lambda client: client.start("resting", version=99)),
        row("rollback-unknown-version", "roll back to a version there is not", "RollbackFlow", "NOT_FOUND", "VERSION_NOT_FOUND", "no version 99", "headrace flow show", lambda client: client.rollback("running", 99)),
        row("unknown-flow", "a flow there is not", "GetFlow", "NOT_FOUND", "FLOW_NOT_FOUND", "'nowhere'", "headrace flow list", lambda client: client.get_flow("nowhere")),
        row("wrong-etag", "an etag of the past", "UpdateDraft", "ABORTED", "ETAG_MISMATCH", "it was changed meanwhile", "Read it again", lambda client: client.update_draft("drafted", SPEC, etag="999")),
        row("taken-name", "create a flow that is there", "CreateFlow", "ALREADY_EXISTS", "ALREADY_EXISTS", "there is a flow 'resting' already", "headrace flow apply", lambda client: client.create_flow("resting", SPEC)),
        row("bad-flow-id", "a flow id with a slash", "CreateFlow", "INVALID_ARGUMENT", "BAD_NAME", "is not a name", "lower-case", lambda client: client.create_flow("a/b", SPEC), "flow_id"),
        row("unknown-step-scaled", "scale a step there is not", "ScaleStep", "INVALID_ARGUMENT", "STEP_NOT_FOUND", "'nope' is not a step of what runs", "Name one of them", lambda client: client.scale("running", "nope", 2), "step"),
        row("too-many-replicas", "a thousand replicas", "ScaleStep", "INVALID_ARGUMENT", "REPLICAS_OUT_OF_RANGE", "1000", "", lambda client: client.scale("running", "receive", 1000), "replicas"),
        row("inject-stopped", "inject into a stopped flow", "InjectMessage", STATE, "WRONG_STATE", "STOPPED", "headrace flow start resting", lambda client: client.inject("resting", b"{}")),
        row("inject-too-large", "inject 1 MB", "InjectMessage", "INVALID_ARGUMENT", "BODY_TOO_LARGE", "is more than 524288 bytes", "Upload it (UploadAttachment", lambda client: client.inject("running", b"x" * 1_000_000), "body"),
        row("inject-gone", "inject with an attachment there is not", "InjectMessage", "NOT_FOUND", "ATTACHMENT_GONE", "is not in the store", "Send the message again", lambda client: client.inject("running", b"{}", attachments=[Attachment(id="0" * 32)])),
        row("upload-digest", "upload bytes that are not what their digest says", "UploadAttachment", "DATA_LOSS", "ATTACHMENT_DAMAGED", "the upload has digest sha256:", "Upload it again", lambda client: client.upload_attachment("running", b"x", digest="sha256:" + "0" * 64)),
        row("upload-no-flow", "upload for a flow there is not", "UploadAttachment", "NOT_FOUND", "FLOW_NOT_FOUND", "'nowhere'", "headrace flow list", lambda client: client.upload_attachment("nowhere", b"x")),
        row("download-gone", "download what was collected", "DownloadAttachment", "NOT_FOUND", "ATTACHMENT_GONE", "is not in the store", "Send the message again", lambda client: anext(client.download_attachment("running", "0" * 32))),
        row("inject-malformed", "inject JSON that is none", "InjectMessage", "INVALID_ARGUMENT", "MALFORMED_JSON", "is not JSON", "another content type", lambda client: client.inject("running", b"{nonsense"), "body"),
        row("run-now-webhook", "run-now of a flow without timer", "RunFlowNow", STATE, "NOT_A_TIMER", "has no timer: its trigger 'receive' waits for messages", "headrace inject running", lambda client: client.run_now("running")),
        row("reset-running", "reset a snapshot of a flow that runs", "ResetSnapshots", STATE, "NOT_STOPPED", "is RUNNING: its steps go by the snapshots they know", "headrace flow stop running", lambda client: client.reset_snapshots("running", "receive")),
        row("reset-nothing", "reset a snapshot there is not", "ResetSnapshots", "NOT_FOUND", "NO_SNAPSHOT", "keeps no snapshot for key 'a'", "headrace snapshot show resting", lambda client: client.reset_snapshots("resting", "receive", "a")),
        row("key-without-step", "a key of no step", "ListSnapshots", "INVALID_ARGUMENT", "INVALID_INPUT", "is a key of which step?", "Name the step", lambda client: client.list_snapshots("running", key="a"), "key"),
        row("unknown-component-name", "a component there is not", "GetComponent", "NOT_FOUND", "COMPONENT_NOT_FOUND", "nowhere", "headrace component", lambda client: client.get_component("nowhere")),
        row("edit-unknown-letter", "edit a dead letter there is not", "EditDeadLetter", "NOT_FOUND", "DEAD_LETTER_NOT_FOUND", "keeps no dead letter 99", "headrace dead-letters list running", lambda client: client.edit_dead_letter("running", 99, body=b"{}")),
        row("replay-both", "replay letters by number and all of a step", "ReplayDeadLetters", "INVALID_ARGUMENT", "INVALID_INPUT", "does not say which letters", "not both", lambda client: client.replay_dead_letters("running", [1], all_letters=True), "names"),
        row("replay-stopped", "replay letters of a stopped flow", "ReplayDeadLetters", STATE, "FLOW_NOT_RUNNING", "cannot be replayed", "headrace flow start resting", lambda client: client.replay_dead_letters("resting", all_letters=True)),
        row("replay-nothing-kept", "replay letters from the start where nothing is kept", "ReplayDeadLetters", STATE, "NO_HISTORY", "does not keep its stimuli", "history: true", lambda client: client.replay_dead_letters("running", all_letters=True, from_start=True)),
        row("replay-revision-without-step", "replay all letters through a revision", "ReplayDeadLetters", "INVALID_ARGUMENT", "INVALID_INPUT", "is needed with revision", "Name the step", lambda client: client.replay_dead_letters("running", all_letters=True, revision="1"), "step"),
        row("replay-revision-unknown", "replay through a revision there is not", "ReplayDeadLetters", "INVALID_ARGUMENT", "COMPONENT_NOT_FOUND", "cannot be resolved", "Push it first", lambda client: client.replay_dead_letters("running", all_letters=True, step="receive", revision="99"), "revision"),
        row("replay-revision-stopped", "replay through a revision in a stopped flow", "ReplayDeadLetters", STATE, "FLOW_NOT_RUNNING", "cannot be replayed", "headrace flow start resting", lambda client: client.replay_dead_letters("resting", all_letters=True, step="receive", revision="1")),
        Row("replay-revision-deleted", "replay through a revision that was deleted", "`ReplayDeadLetters`", "INVALID_ARGUMENT", "COMPONENT_NOT_FOUND", "revision", ("cannot be resolved",), "Push it first", shown_by="tests/integration/test_replay_revision.py::test_letters_go_through_exactly_the_revision_that_is_named"),
        row("stimulus-unknown", "a stimulus there is not", "GetStimulus", "NOT_FOUND", "STIMULUS_NOT_FOUND", "keeps no stimulus 99", "history: true", lambda client: client.get_stimulus("running", 99)),
        row("stimuli-none-named", "replay stimuli without naming one", "ReplayStimuli", "INVALID_ARGUMENT", "INVALID_INPUT", "is not 1 to 100", "headrace stimuli list running", lambda client: client.replay_stimuli("running", []), "names"),
        row("stimuli-stopped", "replay stimuli of a stopped flow", "ReplayStimuli", STATE, "FLOW_NOT_RUNNING", "can be replayed from the start", "headrace flow start resting", lambda client: client.replay_stimuli("resting", [1])),
        Row("replayed-letter", "replay a letter that was replayed already", "`ReplayDeadLetters`", "OK", "NOT_FOUND", "", ("it was replayed, discarded or pushed out, or never was",), "told in `refusals`; the others are replayed", shown_by="tests/integration/test_dead_letters.py::test_replays_go_to_the_pinned_deployment_under_new_ids_and_leave_the_list"),
        Row("stimulus-gone", "replay from the start what is not kept any more", "`ReplayDeadLetters`", "OK", "STIMULUS_GONE", "", ("is not kept (any more): replay it from its step",), "told in `refusals`; the letter stays", shown_by="tests/integration/test_stimuli.py::test_letters_are_replayed_from_the_start"),
        Row("edited-from-start", "replay an edited letter from the start", "`ReplayDeadLetters`", "OK", "EDITED", "", ("its edit is of what step",), "`--revert`", shown_by="tests/integration/test_stimuli.py::test_letters_are_replayed_from_the_start"),
        Row("edit-breaks-json", "an edit that breaks the JSON of a letter", "`EditDeadLetter`", "INVALID_ARGUMENT", "MALFORMED_JSON", "body", ("is not JSON, as its content type says",), "another content type", shown_by="tests/e2e/test_dead_letter_commands.py::test_letters_are_looked_at_replayed_and_discarded"),
        Row("two-publishes", "two publishes at once", "`PublishFlow`", STATE, "BUSY", "", ("names the operation at work",), "--queue", shown_by="tests/integration/test_interventions.py::test_a_second_verb_is_refused_naming_the_first_or_waits_for_it"),
    ),
)  # fmt: skip
SPEC = flow_pb2.FlowSpec(
    type=flow_pb2.FLOW_TYPE_REALTIME, steps=[flow_pb2.Step(name="receive", component="webhook", function="receive")]
)
ORDINARY_SPEC = flow_pb2.FlowSpec(type=flow_pb2.FLOW_TYPE_ORDINARY, steps=SPEC.steps)
