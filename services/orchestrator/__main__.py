"""`python -m services.orchestrator`: flows, deployments, operations; the mesh's one API address."""

from __future__ import annotations

import argparse
import os
import sys

from headrace.edge.operator_ports import add_operator_ports
from headrace.edge.service_runner import run_service
from headrace.model.names import DEFAULT_WORKSPACE
from services.orchestrator.domain.dead_letters import LetterLimits


def main() -> int:
    parser = argparse.ArgumentParser(prog="orchestrator", description=__doc__)
    parser.add_argument("--nats", required=True, help="URL of the NATS server, for example nats://127.0.0.1:4222")
    parser.add_argument("--listen", default="127.0.0.1:0", help="address of the API, HOST:PORT (port 0: a free one)")
    parser.add_argument("--registry", required=True, help="address of the registry, HOST:PORT")
    parser.add_argument("--agent", required=True, help="address of the agent, HOST:PORT or unix:PATH")
    parser.add_argument("--profile", default="durable", help="how the broker keeps data, as shown to people")
    parser.add_argument("--workspace", default=DEFAULT_WORKSPACE)
    parser.add_argument(
        "--name", default="", help="unique among the orchestrators; a successor on the place of a dead one keeps it"
    )
    parser.add_argument("--advertise", default="", help="address for other orchestrators; default: --listen")
    parser.add_argument(
        "--ack-wait",
        type=float,
        default=os.environ.get("HEADRACE_ACK_WAIT_S", "15"),
        metavar="SECONDS",
        help="how long what a killed sidecar held waits until it is delivered again, 1 to 60; for deployments made "
        "from now on (default $HEADRACE_ACK_WAIT_S or 15)",
    )
    limits = LetterLimits()
    parser.add_argument(
        "--dead-letters", type=int, default=limits.count, metavar="N", help="how many dead letters a flow keeps"
    )
    parser.add_argument(
        "--dead-letter-bytes", type=int, default=limits.size, metavar="N", help="how many bytes of them, at least 1 MiB"
    )
    parser.add_argument(
        "--dead-letter-age", type=float, default=limits.age_s, metavar="SECONDS", help="how long, at least 1 s"
    )
    add_operator_ports(parser)
    parser.add_argument(
        "--broker-monitor",
        action="append",
        default=[],
        metavar="URL",
        help="monitoring address of a server of the broker, for its figures in the metrics; once for each server",
    )
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    arguments = parser.parse_args()
    if not 1 <= arguments.ack_wait <= 60:
        parser.error(f"--ack-wait {arguments.ack_wait:g} is not from 1 to 60 seconds")
    if arguments.dead_letters < 1 or arguments.dead_letter_bytes < 1024 * 1024 or arguments.dead_letter_age < 1:
        parser.error("a flow keeps at least 1 dead letter, 1048576 bytes of them, for 1 s")

    from services.orchestrator.app import OrchestratorApp, Settings

    settings = Settings(
        nats=arguments.nats,
        listen=arguments.listen,
        registry=arguments.registry,
        agent=arguments.agent,
        profile=arguments.profile,
        workspace=arguments.workspace,
        ack_wait_s=arguments.ack_wait,
        name=arguments.name,
        advertise=arguments.advertise,
        letter_limits=LetterLimits(arguments.dead_letters, arguments.dead_letter_bytes, arguments.dead_letter_age),
        metrics=arguments.metrics,
        admin=arguments.admin,
        broker_monitors=tuple(arguments.broker_monitor),
    )
    return run_service("orchestrator", OrchestratorApp(settings), log_level=arguments.log_level)


if __name__ == "__main__":
    sys.exit(main())
