"""Bad components: folders, bundles, and code that misbehaves."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path

from headrace.model.bundle_rules import MAX_ENTRIES
from tests.bad_inputs.row import Row, Section
from tests.support.bundles import file_entry, raw_bundle, raw_tar, special_entry

PUSH = "`headrace component push`"
BUNDLE = "`PushRevision`"
INVALID = "INVALID_ARGUMENT"
MANIFEST = "name: wrong\nfunctions:\n  go: {kind: action}\n"
CODE = (
    "from headrace.sdk import Component, Context\ncomponent = Component()\n"
    "@component.action\nasync def go(body: bytes, ctx: Context) -> None: ...\n"
)
HASH = "--hash=sha256:" + "a" * 64
RAW = MANIFEST.encode()


def folder(manifest: str | None = MANIFEST, code: str = CODE, **files: str) -> Callable[[Path], None]:
    """Writes a component's folder; `lock` is its requirements.lock."""

    def write(place: Path) -> None:
        if manifest is not None:
            (place / "component.yaml").write_text(manifest)
        (place / "component.py").write_text(code)
        for name, text in files.items():
            (place / {"lock": "requirements.lock"}.get(name, name)).write_text(text)

    return write


def large(place: Path) -> None:
    folder()(place)
    with (place / "weights.bin").open("wb") as file:
        file.truncate(300 << 20)


def many(place: Path) -> None:
    folder()(place)
    (place / "many").mkdir()
    for number in range(MAX_ENTRIES + 1):
        (place / "many" / f"f{number}").touch()


def odd_name(place: Path) -> None:
    folder()(place)
    Path(str(place) + "/bad-\udcff.txt").touch()


def clash(place: Path) -> None:
    folder()(place)
    (place / "Data.json").touch()
    (place / "data.json").touch()


def row(id: str, what: str, give: object, reason: str, field: str, says: tuple[str, ...], next_step: str) -> Row:
    return Row(id, what, PUSH, INVALID, reason, field, says, next_step, give)


def bundle(id: str, what: str, give: object, reason: str, field: str, says: tuple[str, ...], next_step: str) -> Row:
    return Row(id, what, BUNDLE, INVALID, reason, field, says, next_step, give)


def elsewhere(id: str, what: str, door: str, code: str, reason: str, says: str, next_step: str, shown_by: str) -> Row:
    return Row(id, what, door, code, reason, "", (says,), next_step, shown_by=shown_by)


UNSAFE = "BUNDLE_UNSAFE_PATH"
FOLDERS = (
    Row("no-manifest", "a folder without component.yaml", PUSH, "NOT_FOUND", "NO_MANIFEST", "", ("no component.yaml",), "Name the folder", folder(None)),
    row("manifest-not-yaml", "a manifest that is not YAML", folder("name: [\n"), "BAD_YAML", "line 2", ("component.yaml:2:1:",), "Correct that line"),
    row("manifest-unknown-field", "a misspelt field in the manifest", folder(MANIFEST + "titel: x\n"), "UNKNOWN_FIELD", "titel", ("component.yaml:4:1:", "there is no such field"), "Did you mean `title`?"),
    row("manifest-bad-kind", "a kind of function there is not", folder(MANIFEST.replace("action", "actor")), "UNKNOWN_FUNCTION_KIND", "functions.go.kind", ("component.yaml:3:8:", "'actor' is not a kind"), "action, trigger, listener"),
    row("manifest-lies-about-function", "a function that the code does not have", folder(MANIFEST.replace("go:", "stay:")), "UNKNOWN_FUNCTION", "functions.stay", ("component.yaml:3:3:", "is not a function of the component's code"), "The code has: go"),
    row("manifest-lies-about-kind", "a trigger that is an action in the code", folder(MANIFEST.replace("action", "trigger")), "INVALID_INPUT", "functions.go.kind", ("component.yaml:3:8:", "differs from the code"), "Correct one"),
    row("bad-requirement", "a requirement by URL", folder(MANIFEST + "requirements: ['git+https://example.org/x']\n"), "INVALID_INPUT", "requirements[0]", ("component.yaml:4:16:", "is not a requirement by name and version"), "options, paths and URLs are not taken"),
    elsewhere("requirement-does-not-resolve", "a requirement that no index has", PUSH, INVALID, "LOCK_FAILED", "cannot be locked", "Correct requirements", "tests/unit/test_packing.py::test_a_requirement_that_does_not_exist_is_named"),
    row("lock-does-not-match", "a lock without one of the requirements", folder(MANIFEST + "requirements: [httpx]\n", lock=f"anyio==4.0 {HASH}\n"), "LOCK_MISMATCH", "requirements[0]", ("'httpx' is not in requirements.lock",), "Delete requirements.lock"),
    row("lock-pins-other-version", "a lock with another version than required", folder(MANIFEST + "requirements: [httpx==0.28]\n", lock=f"httpx==0.27 {HASH}\n"), "LOCK_MISMATCH", "requirements[0]", ("is not what requirements.lock pins, 0.27",), "Delete requirements.lock"),
    row("lock-without-hash", "a lock without hashes", folder(MANIFEST + "requirements: [httpx]\n", lock="httpx==0.27\n"), "BAD_LOCK", "requirements.lock:1", ("has no sha256 hash",), "Delete requirements.lock"),
    row("does-not-import", "code that does not import", folder(code="import nothing_of_that_name\n"), "IMPORT_FAILED", "", ("No module named 'nothing_of_that_name'",), "Correct the code"),
    row("exits-on-import", "code that exits while it is imported", folder(code="import os\nos._exit(0)\n"), "IMPORT_FAILED", "", ("description is not a JSON object",), "top level"),
    row("large-folder", "a folder of 300 MB", large, "BUNDLE_TOO_LARGE", "bundle.content", ("more than 268,435,456 bytes",), ".headraceignore"),
    row("many-files", "more than 10 000 files", many, "BUNDLE_TOO_MANY_ENTRIES", "bundle.entries", ("above the limit of 10000",), ".headraceignore"),
    row("name-not-utf8", "a file name that is not UTF-8", odd_name, UNSAFE, "bundle.entry", ("is not valid UTF-8",), "plain relative paths"),
    row("case-clash", "names that differ only in case", clash, UNSAFE, "bundle.entry", ("differs from 'Data.json' only in upper and lower case",), "a name of its own"),
)  # fmt: skip
BUNDLES = (
    bundle("bundle-parent-path", "a path out of the bundle", raw_bundle(file_entry("../evil", b"x"), manifest=RAW), UNSAFE, "bundle.entry", ("leads out of the bundle",), "headrace component push"),
    bundle("bundle-absolute-path", "an absolute path", raw_bundle(file_entry("/tmp/evil", b"x"), manifest=RAW), UNSAFE, "bundle.entry", ("is an absolute path",), "headrace component push"),
    bundle("bundle-link", "a symbolic link", raw_bundle(special_entry("link", tarfile.SYMTYPE, "/etc/passwd"), manifest=RAW), "BUNDLE_UNSAFE_ENTRY", "bundle.entry", ("link",), "regular file"),
    bundle("bundle-hard-link", "a hard link", raw_bundle(special_entry("link", tarfile.LNKTYPE, "component.yaml"), manifest=RAW), "BUNDLE_UNSAFE_ENTRY", "bundle.entry", ("link",), "regular file"),
    bundle("bundle-device", "a device file", raw_bundle(special_entry("zero", tarfile.CHRTYPE), manifest=RAW), "BUNDLE_UNSAFE_ENTRY", "bundle.entry", ("zero",), "regular file"),
    bundle("bundle-pipe", "a pipe", raw_bundle(special_entry("pipe", tarfile.FIFOTYPE), manifest=RAW), "BUNDLE_UNSAFE_ENTRY", "bundle.entry", ("pipe",), "regular file"),
    bundle("bundle-case-clash", "names that differ only in case", raw_bundle(file_entry("a/B"), file_entry("A/c"), manifest=RAW), UNSAFE, "bundle.entry", ("only in upper and lower case",), "a name of its own"),
    bundle("bundle-many-files", "more than 10 000 files, for example 100 000", lambda: raw_bundle(*[file_entry(f"f{n}") for n in range(MAX_ENTRIES + 1)], manifest=RAW), "BUNDLE_TOO_MANY_ENTRIES", "bundle.entries", ("above the limit",), ".headraceignore"),
    bundle("bundle-not-utf8", "an entry name that is not UTF-8", lambda: gzip.compress(raw_tar([file_entry("component.yaml", RAW), file_entry("bad-\udcff")], format=tarfile.GNU_FORMAT)), "BAD_BUNDLE", "", ("utf-8",), "Send a gzip-compressed tar"),
    bundle("bundle-no-lock", "requirements without a lock", raw_bundle(manifest=RAW + b"requirements: [httpx]\n"), "NO_LOCK", "", ("requirements without requirements.lock",), "headrace component push"),
    bundle("bundle-lock-mismatch", "a lock without one of the requirements", raw_bundle(file_entry("requirements.lock", f"anyio==4.0 {HASH}\n".encode()), manifest=RAW + b"requirements: [httpx]\n"), "LOCK_MISMATCH", "requirements[0]", ("is not in requirements.lock",), "Delete requirements.lock"),
    bundle("bundle-no-manifest", "no manifest", raw_bundle(file_entry("x.py"), manifest=None), "NO_MANIFEST", "", ("no component.yaml at its top",), "Push the folder"),
    bundle("bundle-cut-off", "a bundle that ends in the middle", raw_bundle(manifest=RAW)[:-10], "BAD_BUNDLE", "", ("cut off",), ""),
    bundle("bundle-not-gzip", "something else than a bundle", b"PK\x03\x04" + bytes(100), "BAD_BUNDLE", "", ("gzip",), ""),
    elsewhere("bundle-too-large", "a bundle of more than 64 MiB (200 MB)", BUNDLE, INVALID, "BUNDLE_TOO_LARGE", "more than 67,108,864 bytes", ".headraceignore", "tests/integration/test_registry_faults.py::test_a_bundle_above_the_limit_is_refused_while_it_comes"),
    elsewhere("bundle-zeros", "2 GB of zeros, well compressed", BUNDLE, INVALID, "BUNDLE_TOO_LARGE", "more than 268,435,456 bytes", ".headraceignore", "tests/integration/test_registry_faults.py::test_zeros_are_refused_quickly_in_little_memory"),
    elsewhere("same-version-other-bytes", "version 1.2.0 again with other content", PUSH, "ALREADY_EXISTS", "VERSION_TAKEN", "1.2.0", "the next free one", "tests/integration/test_registry.py::test_same_version_with_other_bytes_is_refused_naming_the_next_free_one"),
)  # fmt: skip
START = "`headrace flow start`"
WORK = "a message"
HOSTILE = "tests/robustness/test_hostile_components.py::test_a_crime_is_contained"
TROUBLE = "tests/e2e/test_trouble.py::test_a_component_that_cannot_start_fails_the_start_and_a_correction_works"
CODE_ROWS = (
    elsewhere("exits-in-init", "a component that exits 0 in `init`", START, "FAILED_PRECONDITION", "COMPONENT_EXITED_IN_INIT", "ended (exit status 0) in init", "Correct it, push, and run", TROUBLE),
    elsewhere("opens-no-socket", "a component that opens another socket, or none", START, "FAILED_PRECONDITION", "COMPONENT_SOCKET_NOT_OPENED", "did not open its socket within", "Correct it, push, and run", TROUBLE),
    elsewhere("unknown-protocol", "a component that speaks an unknown version of the contract", START, "FAILED_PRECONDITION", "PROTOCOL_VERSION", "speaks version 9 of the contract, not 1", "Build it with an SDK", "tests/integration/test_sidecar_lifecycle.py::test_a_component_that_cannot_start_says_why"),
    elsewhere("function-twice", "a component that claims a function twice", START, "FAILED_PRECONDITION", "DUPLICATE_FUNCTION", "claims its function 'work' twice", "Name each function once", "tests/integration/test_sidecar_lifecycle.py::test_a_component_that_cannot_start_says_why"),
    elsewhere("function-missing", "a component without the step's function", START, "FAILED_PRECONDITION", "UNKNOWN_FUNCTION", "has no function 'work'", "Correct the step's function", "tests/integration/test_sidecar_lifecycle.py::test_a_component_that_cannot_start_says_why"),
    elsewhere("prints-binary", "a component that prints binary", WORK, "-", "-", "lines are kept, other bytes are replaced", "-", "tests/unit/sidecar/test_log_capture.py::test_any_bytes_are_taken"),
    elsewhere("floods-logs", "a component that writes 100 MB of logs", WORK, "-", "-", "what is too fast is counted, the message is delivered", "-", HOSTILE),
    elsewhere("answers-twice", "a component that answers twice", WORK, "-", "-", "the second answer is dropped and counted", "-", HOSTILE),
    elsewhere("emits-unserialisable", "a component that emits what JSON cannot hold", WORK, "dead letter, 500", "OUTPUT_REFUSED", "named by its path; not tried again", "docs/outcomes.md", "tests/integration/test_sidecar_policy.py::test_an_output_without_json_is_refused_by_name_and_not_tried_again"),
    elsewhere("emits-100-mb", "a component that emits 100 MB", WORK, "dead letter, 500", "OUTPUT_REFUSED", "the body has 104857600 bytes", "docs/outcomes.md", HOSTILE),
    elsewhere("blocks", "a component whose loop is blocked", WORK, "dead letter, 502", "COMPONENT_DIED", "event loop was blocked", "docs/outcomes.md", HOSTILE),
    elsewhere("fills-memory", "a component that takes all memory it can get", WORK, "dead letter, 502", "COMPONENT_DIED", "MiB of memory", "docs/outcomes.md", HOSTILE),
    elsewhere("never-ends", "a call that never ends", WORK, "dead letter, 504", "TIMEOUT", "took longer than 1 s", "docs/outcomes.md", HOSTILE),
    elsewhere("segfault", "a component that crashes", WORK, "dead letter, 502", "COMPONENT_DIED", "SIGSEGV", "docs/outcomes.md", HOSTILE),
)  # fmt: skip
EDGES = "tests/integration/test_between_steps.py::test_a_failing_expression_costs_its_message_only"
SAVES = "tests/integration/test_between_steps.py::test_what_may_not_be_saved_fails_its_message"
BETWEEN = (
    elsewhere("expression-loops", "a mapping that loops", WORK, "dead letter, 500", "EXPRESSION_FAILED", "took more than 1 s of processor time, with edge, expression and place", "docs/integration.md", EDGES),
    elsewhere("expression-recurses", "a mapping that recurses without end", WORK, "dead letter, 500", "EXPRESSION_FAILED", "recurses too deeply", "docs/integration.md", EDGES),
    elsewhere("expression-regex", "a regular expression that tries for ever", WORK, "dead letter, 500", "EXPRESSION_FAILED", "took more than 1 s of processor time", "docs/integration.md", EDGES),
    elsewhere("expression-100-mb", "a mapping that yields 100 MB", WORK, "dead letter, 500", "EXPRESSION_FAILED", "bytes, memory or time, whichever ends first", "docs/integration.md", EDGES),
    elsewhere("expression-nothing", "a mapping that yields no value", WORK, "dead letter, 500", "EXPRESSION_FAILED", "yields no value; for JSON's null write null, to send nothing add a condition", "docs/integration.md", EDGES),
    elsewhere("expression-type", "an expression that fails on one message", WORK, "dead letter, 500", "EXPRESSION_FAILED", "(at line 8, character", "docs/integration.md", EDGES),
    elsewhere("error-step-fails", "an error step that fails itself", WORK, "dead letter, its own status", "its own code", "never handed to itself", "headrace dead-letters list", "tests/integration/test_error_steps.py::test_the_error_step_gets_what_failed_and_the_caller_an_answer"),
    elsewhere("error-step-input", "a failed input that does not fit into the error step's message", WORK, "dead letter too", "its code", "input_omitted", "docs/integration.md", "tests/integration/test_error_steps.py::test_the_error_step_gets_what_failed_and_the_caller_an_answer"),
    elsewhere("cron-skipped-hour", "a fixed hour that the clock leaves out", "cron", "-", "-", "its tick comes right after", "docs/integration.md", "tests/unit/test_cron.py::test_a_fixed_time_that_the_clock_leaves_out_comes_right_after"),
    elsewhere("cron-repeated-hour", "a fixed hour that the clock repeats", "cron", "-", "-", "its tick comes the first time only", "docs/integration.md", "tests/unit/test_cron.py::test_a_fixed_time_that_the_clock_repeats_comes_once"),
    elsewhere("no-condition-holds", "an output for which no condition holds", WORK, "-", "-", "goes nowhere, counted (unrouted) and shown", "headrace flow status", "tests/integration/test_between_steps.py::test_each_receiver_gets_what_its_edge_says"),
    elsewhere("passthrough-by-reference", "an earlier output of more than 256 KiB, read as a value", WORK, "dead letter, 500", "BODY_NOT_LOADED", "goes by reference", "use read()", "tests/integration/test_between_steps.py::test_earlier_outputs_are_there_for_expressions_and_components"),
    elsewhere("attachment-gone", "an attachment that is gone", WORK, "dead letter, 500", "ATTACHMENT_GONE", "is not in the store", "Send the message again", "tests/integration/test_attachments.py::test_what_no_message_names_is_collected"),
    elsewhere("output-too-large", "an output of more than 100 MB", WORK, "dead letter, 500", "ATTACHMENT_TOO_LARGE", "more than 104857600 bytes", "HEADRACE_MAX_ATTACHMENT_MB", "tests/integration/test_sidecar.py::test_outputs_beyond_the_limits_are_refused"),
    elsewhere("body-too-large-to-load", "a body of more than 16 MiB for a function that takes a value", WORK, "dead letter, 413", "BODY_TOO_LARGE", "are loaded for a function", "read ctx.message.stream()", "tests/unit/test_attachments.py::test_functions_in_the_harness_stream_attach_and_pass_on"),
    elsewhere("snapshot-too-large", "a snapshot of more than 64 KiB", WORK, "dead letter, 500", "SNAPSHOT_REFUSED", "more than 65536", "docs/integration.md", SAVES),
)  # fmt: skip
SECTION = Section(
    "Components",
    "A refused push leaves no component, no revision and no bytes. What a component does to a message is contained: its "
    "sidecar, the other steps and the other flows notice nothing.",
    FOLDERS + BUNDLES + CODE_ROWS + BETWEEN,
)
