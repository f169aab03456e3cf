"""The agent with the stand-in sidecar: `python -m tests.support.agent_with_stand_in RUN_DIR MAX_INSTANCES`."""

import sys
from pathlib import Path

from headrace.edge.service_runner import run_service
from services.agent.app import AgentApp
from services.agent.process_instances import ProcessDriver, ProcessSettings

if __name__ == "__main__":
    run_dir = Path(sys.argv[1])
    settings = ProcessSettings(
        nats_url="nats://127.0.0.1:1",
        registry="127.0.0.1:1",
        cache_dir=run_dir / "cache",
        run_dir=run_dir,
        log_dir=run_dir / "logs",
        command=(sys.executable, str(Path(__file__).with_name("stand_in_sidecar.py"))),
    )
    app = AgentApp(ProcessDriver(settings), "127.0.0.1:0", instance_limit=int(sys.argv[2]))
    sys.exit(run_service("agent", app, stop_timeout_s=4.0))
