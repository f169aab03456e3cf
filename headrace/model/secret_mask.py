"""Takes secrets out of what is logged: values that are known to be secret, and what looks like one.

Known are all values of a step's credential, and those of its configuration under names such as `password` or `api_key`.
What looks like one is what follows such a name, an authorization header, the password in a URL, or a JSON web token.
Nothing promises that all is found: a component that logs its secret under another name, or in pieces, is not helped.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from headrace.model.credential import leaf_texts

MASK = "***"
# Shorter values are words that stand in many lines.
SHORTEST = 4
LONGEST = 10_000
MOST_VALUES = 2_000
MAX_DEPTH = 20
SHORTEST_ENCODED = 6
# Every part is bounded or begins where a word does, so that no line takes long.
_NAME = (
    r"[\w-]{0,40}?(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential)s?"
)
_SECRET_NAME = re.compile(rf"(?:{_NAME}|pwd|authorization|cookie)", re.IGNORECASE)
# What a line must hold for a pattern to be tried at all: most lines hold none of it.
_HINTS = (
    *("pass", "pwd", "secret", "token", "key", "credential", "authorization", "cookie", "://"),
    *("eyj", "bearer", "basic"),
)
_IS = r"""\\?["']?\s{0,10}[:=]\s{0,10}"""
_VALUE = r"""(?:\\?"(?:[^"\\]|\\.)*\\?"|'[^']*'|[^\s,;&"'{}\[\])]+)"""
_SCHEME = r"(?:bearer|basic|token|digest)\s{1,10}"
_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (rf"""(?<![\w-])((?:proxy-)?authorization{_IS}\\?["']?)(?:{_SCHEME})?[^\s"'\\,}}]+""", rf"\1{MASK}"),
        (r"(\b(?:bearer|basic)\s{1,10})[\w.~+/=-]{8,}", rf"\1{MASK}"),
        (rf"(?<![\w-])((?:{_NAME}|pwd|cookie){_IS})(?!\*\*\*){_VALUE}", rf"\1{MASK}"),
        (r"(://[^\s/:@]{0,100}:)[^\s/@]{1,500}(@)", rf"\1{MASK}\2"),
        (r"\beyJ[\w-]{6,}\.[\w-]{4,}\.[\w-]{4,}", MASK),
    )
)


class SecretMask:
    """`text` and `fields` answer the same without secrets."""

    def __init__(self) -> None:
        self._known: re.Pattern[str] | None = None
        self._values: set[str] = set()

    def learn(self, config: Mapping[str, Any]) -> None:
        """From now on the secret values of this configuration are masked wherever they stand."""
        self._learn(secret_values(config))

    def learn_all(self, value: Any) -> None:
        """From now on every text and number of this value is masked, also as JSON, a URL or base64 has it."""
        self._learn(form for text in leaf_texts(value) for form in written_forms(text))

    def known(self, text: str) -> str:
        """The text without the values that were learnt; nothing is looked for by its looks."""
        return text if self._known is None else self._known.sub(MASK, text)

    def _learn(self, values: Iterable[str]) -> None:
        for value in values:
            if SHORTEST <= len(value) <= LONGEST and len(self._values) < MOST_VALUES:
                self._values.add(value)
        if self._values:
            longest_first = sorted(self._values, key=len, reverse=True)
            self._known = re.compile("|".join(map(re.escape, longest_first)))

    def text(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(MASK, text)
        low = text.lower()
        if any(hint in low for hint in _HINTS):
            for pattern, replacement in _PATTERNS:
                text = pattern.sub(replacement, text)
        return text

    def fields(self, value: Any, depth: int = 0) -> Any:
        """Plain data of a line: what stands under a secret's name is masked whole."""
        if isinstance(value, str):
            return self.text(value)
        if depth >= MAX_DEPTH:
            return MASK if isinstance(value, dict | list) else value
        if isinstance(value, dict):
            return {name: self._field(str(name), inner, depth) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.fields(inner, depth + 1) for inner in value]
        return value

    def _field(self, name: str, value: Any, depth: int) -> Any:
        told = value is None or value == "" or isinstance(value, bool)
        return MASK if is_secret_name(name) and not told else self.fields(value, depth + 1)


def is_secret_name(name: str) -> bool:
    """Whether what is called so is a secret: `password`, `db_password`, `api-key`, `Authorization`."""
    return _SECRET_NAME.fullmatch(name.strip()) is not None


def written_forms(text: str) -> Iterator[str]:
    """A secret as it may stand in a line: as it is, escaped for JSON, quoted for a URL, in base64 (of it alone, or
    behind a user name of any length)."""
    yield text
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield quote(text, safe="")
    yield quote_plus(text)
    yield repr(text)[1:-1]
    raw = text.encode(errors="replace")
    if len(raw) < SHORTEST_ENCODED:
        return
    for shift in range(3):
        # What of the encoding does not depend on its neighbours, whatever stands before and behind.
        encoded = b64encode(b"\0" * shift + raw).decode().rstrip("=")
        inner = encoded[(0, 2, 3)[shift] : len(encoded) - (0 if (shift + len(raw)) % 3 == 0 else 1)]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def secret_values(config: Any, *, secret: bool = False, depth: int = 0) -> Iterator[str]:
    """Texts and numbers under secrets' names, at any depth, and passwords in URLs."""
    if depth > MAX_DEPTH:
        return
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from secret_values(value, secret=secret or is_secret_name(str(name)), depth=depth + 1)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from secret_values(value, secret=secret, depth=depth + 1)
    elif secret and isinstance(config, str | int | float) and not isinstance(config, bool):
        yield str(config)
    elif isinstance(config, str) and (found := re.search(r"://[^\s/:@]*:([^\s/@]+)@", config)):
        yield found.group(1)
