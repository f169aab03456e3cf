"""Grammar of names: flows, steps, components, workspaces, tags, references and resource names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from headrace.model.errors import InvalidInput

NAME_PATTERN = r"[a-z][a-z0-9-]{0,62}"
_NAME = re.compile(NAME_PATTERN)
_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
SEMVER_PATTERN = r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?"
_SEMVER = re.compile(SEMVER_PATTERN)
_SEMVER_CHARACTERS = 64
_NUMBER = re.compile(r"[0-9]{1,18}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
FUNCTION_PATTERN = r"[A-Za-z][A-Za-z0-9_-]{0,63}"
_FUNCTION = re.compile(FUNCTION_PATTERN)

DEFAULT_WORKSPACE = "default"


def check_name(field: str, value: str) -> str:
    """Returns the value if it is a name (lower-case letters, digits, dashes; letter first; at most 63)."""
    if not _NAME.fullmatch(value):
        raise InvalidInput.at(
            field,
            value,
            "is not a name",
            next_step="Use lower-case letters, digits and dashes, a letter first, at most 63 characters",
            reason="BAD_NAME",
        )
    return value


def check_function(field: str, value: str) -> str:
    """Returns the value if it can name a function of a component."""
    if not _FUNCTION.fullmatch(value):
        raise InvalidInput.at(field, value, "is not a function name", reason="BAD_NAME")
    return value


def check_tag(field: str, value: str) -> str:
    """Returns the value if it can be a tag; numbers alone are refused, since they mean revisions."""
    if not _TAG.fullmatch(value) or value.isdigit():
        raise InvalidInput.at(
            field, value, "is not a tag", next_step="Use a word such as 'stable' or a version such as '1.2.0'"
        )
    return value


def is_semver(value: str) -> bool:
    """At most 64 characters, as any tag."""
    return len(value) <= _SEMVER_CHARACTERS and _SEMVER.fullmatch(value) is not None


def is_number(text: str) -> bool:
    """Whether `int(text)` is a number of ours: what `isdigit` takes may be no number at all (`²`), or one that neither
    `int` nor a message's field takes."""
    return _NUMBER.fullmatch(text) is not None


def is_digest(value: str) -> bool:
    return _DIGEST.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Reference:
    """A component reference: one of tag, revision number or digest is set; `price` means tag `latest`."""

    component: str
    tag: str = ""
    number: int = 0
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.component}@{self.digest or self.number or self.tag}"


def parse_reference(field: str, text: str) -> Reference:
    """Parses `price`, `price@latest`, `price@1.2.0`, `price@3` or `price@sha256:...`."""
    component, at, selector = text.partition("@")
    check_name(field, component)
    if not at:
        return Reference(component, tag="latest")
    if is_digest(selector):
        return Reference(component, digest=selector)
    if is_number(selector) and int(selector) > 0:
        return Reference(component, number=int(selector))
    return Reference(component, tag=check_tag(field, selector))


def parse_resource(field: str, value: str, *collections: str) -> list[str]:
    """Parses a resource name such as `flows/orders/versions/2` and returns its ids.

    `collections` are the expected collection words in order, for example `"flows", "versions"`.
    """
    parts = value.split("/")
    pattern = "/".join(f"{word}/{{{word.rstrip('s')}}}" for word in collections)
    if len(parts) != 2 * len(collections) or any(parts[2 * i] != word for i, word in enumerate(collections)):
        raise InvalidInput.at(field, value, "is not a resource name", next_step=f"Use {pattern}", reason="BAD_NAME")
    ids = parts[1::2]
    check_name(field, ids[0])
    for number in ids[1:]:
        if not is_number(number):
            raise InvalidInput.at(field, value, f"does not end in a number ({pattern})", reason="BAD_NAME")
    return ids


def instance_name(workspace: str, flow: str, deployment: int, step: str, replica: int) -> str:
    """Name of one replica of one step: `default.orders.d1.price.0`."""
    return f"{workspace}.{flow}.d{deployment}.{step}.{replica}"


def parse_step(field: str, name: str) -> tuple[str, str]:
    """Flow and step of `flows/orders/steps/price`."""
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "flows" or parts[2] != "steps":
        raise InvalidInput.at(field, name, "is not flows/{flow}/steps/{step}", reason="BAD_NAME")
    return check_name(field, parts[1]), check_name(field, parts[3])
