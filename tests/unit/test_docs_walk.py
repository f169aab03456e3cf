"""The runner of the documents notices what it should."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.docs.walk import Walk, fits

GOOD = """
```yaml
# one/file.yaml
a: 1
```

```console
$ cat one/file.yaml
# one/file.yaml
a: 1
$ word=two; cd one
$ echo $word \\
>   three; pwd
two three
…/one
```

```console fails
$ false
```

```sh
# a remark
ls > /dev/null
test "$word" = two
```
"""


def walk(folder: Path, text: str, **renamed: str) -> int:
    document = folder / "doc.md"
    document.write_text(text)
    walked = Walk(document, folder, dict(os.environ), renamed)
    walked.go()
    return walked.ran


def test_commands_share_a_shell_and_files_are_written(tmp_path: Path) -> None:
    assert walk(tmp_path, GOOD) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```console\n$ echo a\nb\n```", r"doc.md:2: \$ echo a"),
        ("```console\n$ false\n```", "ended with status 1"),
        ("```console fails\n$ true\n```", "ended with status 0"),
        ("```sh\ntrue\nexit 3\n```", "the shell has ended"),
        ("```sh\nmake nonsense\n```", "make knows no"),
    ],
)
def test_a_difference_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        walk(tmp_path, text)


def test_what_varies(tmp_path: Path) -> None:
    assert fits("a…z", "abcz")
    assert fits("a\n…\nz", "a\nb\nc\nz  \n\n")
    assert not fits("a…z", "abc")
    assert not fits("a...z", "abcz")
    assert walk(tmp_path, "```console\n$ echo port 7400\nport 7400\n```", **{"7400": "9"}) == 1
