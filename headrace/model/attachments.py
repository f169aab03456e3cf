"""Bounds and names of attachments: bytes that go with messages by reference."""

from __future__ import annotations

import re
from collections.abc import Collection
from hashlib import blake2b

from headrace.model.errors import InvalidInput

CHUNK_BYTES = 256 * 1024
"""How bytes travel between component and sidecar."""
MAX_ATTACHMENT_BYTES = 100 * 1024 * 1024
"""Largest attachment, and largest body by reference, where the mesh does not say otherwise."""
LIMIT_VARIABLE = "HEADRACE_MAX_ATTACHMENT_MB"
MAX_ATTACHMENTS = 64
"""Of one message."""
MAX_NAME_BYTES = 255
LOADED_BYTES = 16 * 1024 * 1024
"""Largest body that is loaded whole for a function that takes it as a value."""
DEFAULT_TYPE = "application/octet-stream"
MAX_TYPE_CHARACTERS = 255
KEEP_S = 120.0
"""How long an object is kept, from when its metadata was written last, whether or not a message names it."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SEPARATORS = re.compile(r"[/\\]")


def limit_of(environment: str) -> int:
    """Bytes of the largest attachment by the value of HEADRACE_MAX_ATTACHMENT_MB; InvalidInput for no number."""
    if not environment:
        return MAX_ATTACHMENT_BYTES
    if not environment.isdigit() or not 1 <= int(environment) <= 10_000:
        raise InvalidInput.at(LIMIT_VARIABLE, environment, "is not a number of megabytes from 1 to 10000")
    return int(environment) * 1024 * 1024


def clean_name(given: str, taken: Collection[str] = (), number: int = 1) -> str:
    """A file name that is safe to show and to save under, unlike those taken. Of a path its last part is meant;
    control characters and such that turn text around are left out; what is left of nothing is `attachment-<number>`.
    It is cut to 255 bytes, keeping its ending, and one that is taken already gets a number: `report-2.pdf`.
    """
    name = _CONTROL.sub("", _SEPARATORS.split(given)[-1]).strip()
    if name.strip(".") == "":
        name = f"attachment-{number}"
    name = _cut(name)
    if name not in taken:
        return name
    stem, dot, ending = name.rpartition(".")
    if not stem:
        stem, dot, ending = name, "", ""
    for count in range(2, len(taken) + 3):
        candidate = _cut(f"{stem}-{count}{dot}{ending}")
        if candidate not in taken:
            return candidate
    return f"attachment-{number}"


def _cut(name: str) -> str:
    raw = name.encode("utf-8", "replace")
    if len(raw) <= MAX_NAME_BYTES:
        return raw.decode()
    stem, dot, ending = name.rpartition(".")
    tail = (dot + ending).encode("utf-8", "replace") if stem and len(ending) <= 16 else b""
    head = (stem if tail else name).encode("utf-8", "replace")[: MAX_NAME_BYTES - len(tail)]
    return head.decode("utf-8", "ignore") + tail.decode()


def clean_type(given: str) -> str:
    """A media type as it was given, where it looks like one; else `application/octet-stream`."""
    text = given.strip()
    fits = 0 < len(text) <= MAX_TYPE_CHARACTERS and "/" in text and text.isprintable() and text.isascii()
    return text if fits else DEFAULT_TYPE


def attachment_id(parent: str, digest: bytes, size: int) -> str:
    """Name of the object that holds bytes uploaded for one message's sake: the same at every attempt that uploads the
    same bytes, so that what a repeated attempt emits is the same. `parent` is the id of the message whose processing
    made them, or of the execution that they begin."""
    hashed = blake2b(digest_size=16, person=b"hr-attachment")
    for part in (parent.encode(), digest, str(size).encode()):
        hashed.update(len(part).to_bytes(4, "big"))
        hashed.update(part)
    return hashed.hexdigest()


def object_name(flow: str, attachment: str) -> str:
    """Name in the object store."""
    return f"{flow}/{attachment}"


def is_attachment_id(text: str) -> bool:
    """Whether it can be the id of an attachment."""
    return len(text) == 32 and all(c in "0123456789abcdef" for c in text)
