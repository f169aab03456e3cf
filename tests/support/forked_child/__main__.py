"""Reports what it sees of itself, then ends as its argument says: `wait` for a signal, or `exit STATUS`."""

from __future__ import annotations

import os
import signal
import sys

from headrace.edge.parent_death import tie_to_parent
from headrace.edge.readiness import report_ready


def main() -> int:
    tie_to_parent()
    facts = {
        "parent": os.getppid(),
        "session": os.getsid(0),
        "environment": {name: value for name, value in os.environ.items() if name.startswith("TEST_")},
        "arguments": sys.argv[1:],
        "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
        "modules": [name for name in ("asyncio", "nats") if name in sys.modules],
    }
    print("hello")
    report_ready(facts)
    sys.stdout.flush()
    if sys.argv[1] == "exit":
        return int(sys.argv[2])
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
