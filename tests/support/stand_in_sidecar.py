"""A process in place of a sidecar, for tests of the agent: ready at once, with a component of its own.

HEADRACE_STEP says how it behaves: `stubborn` ignores SIGTERM, `crash` ends before it is ready, `orphans` starts a
grandchild in another session that nobody ties.
"""

import os
import signal
import subprocess
import sys

from headrace.edge.parent_death import tie_to_parent, tied_command
from headrace.edge.readiness import report_ready

tie_to_parent()
step = os.environ["HEADRACE_STEP"]
if step == "crash":
    print("cannot import price", file=sys.stderr)
    sys.exit(3)
if step == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleeper = [sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"]
subprocess.Popen(tied_command(sleeper), start_new_session=True)
if step == "orphans":
    subprocess.Popen(sleeper, start_new_session=True)
report_ready({"address": f"unix:{os.environ['HEADRACE_RUN_DIR']}/{os.getpid()}.sock"})
while True:
    signal.pause()
