"""docs/first-five-minutes.md is what its script makes today, as far as the commands go."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_commands_of_the_script_in_order() -> None:
    source = (ROOT / "tools" / "first_five_minutes.py").read_text(encoding="utf-8")
    walked = source[source.index("def set_up(") : source.index("def edited(")]
    done = re.findall(r'(?:run|show)\(\s*"([^"]+)"|dev, "([^"]+)"|edited\(\s*transcript,\s*dev,\s*"([^"]+)"', walked)
    commands = [next(filter(None, found)) for found in done]
    page = re.findall(r"^\$ (.*)$", (ROOT / "docs" / "first-five-minutes.md").read_text(encoding="utf-8"), re.M)
    assert len(commands) >= 10
    assert [shown for shown in page if shown in commands] == commands
    rest = {shown.split()[0] for shown in page if shown not in commands}
    assert rest == {"git", "curl"}, "what the script writes with names of this machine"
