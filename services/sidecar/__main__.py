"""`python -m services.sidecar`: one instance's sidecar; settings come from HEADRACE_* variables."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys

from headrace.edge.fault_points import install_faults
from headrace.edge.heap import keep_freed_memory
from headrace.edge.service_runner import run_service
from headrace.edge.structured_log import configure_logging, get_logger
from headrace.model.errors import HeadraceError
from services.sidecar.app import SidecarService
from services.sidecar.settings import Settings
from services.sidecar.spare_component import SpareComponent

# Finishing what is in flight may take a Shutdown call's whole grace.
STOP_LIMIT_S = 75.0
# A message is some dozens of objects, next to none of them in a cycle: collecting after every 700 took an eighth of
# the processor time under load.
COLLECT_AFTER = (10_000, 20, 20)


def main() -> int:
    spare = SpareComponent.fork()  # before anything else: a process with threads cannot be forked
    gc.set_threshold(*COLLECT_AFTER)
    keep_freed_memory()
    parser = argparse.ArgumentParser(prog="python -m services.sidecar", description=__doc__)
    parser.add_argument("--trial", action="store_true", help="serve one trial instead of an instance")
    parser.add_argument("--log-level", default=os.environ.get("HEADRACE_LOG_LEVEL", "info"))
    arguments = parser.parse_args()
    try:
        settings = Settings.from_env(os.environ)
        install_faults(os.environ, settings.instance)
    except HeadraceError as error:
        configure_logging("sidecar", arguments.log_level)
        get_logger(__name__).error("cannot start", error=str(error))
        return 2
    if arguments.trial:
        from services.sidecar.trial_app import TrialApp

        return run_service("trial", TrialApp(settings, spare), log_level=arguments.log_level, stop_timeout_s=5.0)
    stop_event = asyncio.Event()
    return run_service(
        "sidecar",
        SidecarService(settings, stop_event, spare),
        log_level=arguments.log_level,
        stop_timeout_s=STOP_LIMIT_S,
        stop_event=stop_event,
    )


if __name__ == "__main__":
    sys.exit(main())
