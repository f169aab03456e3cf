"""`python -m services.agent`: starts and stops the instances of this machine."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from headrace.edge.operator_ports import add_operator_ports
from headrace.edge.parent_death import tie_to_parent


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="services.agent", description=__doc__)
    parser.add_argument("--nats", required=True, metavar="URL", help="broker that instances connect to")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="ADDR", help="host:port (0 for a free one)")
    parser.add_argument("--registry", required=True, metavar="ADDR", help="registry that instances fetch bundles from")
    parser.add_argument("--cache", required=True, type=Path, metavar="DIR", help="bundles and environments")
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="sockets; a short path, mode 0700")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="logs of instances (default: <run>/logs)")
    parser.add_argument("--max-instances", type=int, default=500, metavar="N")
    parser.add_argument(
        "--preload",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fork instances from a parent that has imported everything (default), or execute each one",
    )
    add_operator_ports(parser)
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser.parse_args(arguments)


def main() -> int:
    # A signal that leaves it a moment: what components started and nobody ties ends with it, too. Early, since the
    # imports below take a while.
    tie_to_parent(death_signal=signal.SIGTERM)
    arguments = parse_arguments()
    from headrace.edge.service_runner import run_service
    from services.agent.app import AgentApp
    from services.agent.process_instances import ProcessDriver, ProcessSettings

    settings = ProcessSettings(
        nats_url=arguments.nats,
        registry=arguments.registry,
        cache_dir=arguments.cache.absolute(),
        run_dir=arguments.run.absolute(),
        log_dir=(arguments.logs or arguments.run / "logs").absolute(),
        log_level=arguments.log_level,
        preload=arguments.preload,
    )
    app = AgentApp(
        ProcessDriver(settings),
        arguments.listen,
        instance_limit=arguments.max_instances,
        metrics=arguments.metrics,
        admin=arguments.admin,
    )
    return run_service("agent", app, log_level=arguments.log_level, stop_timeout_s=4.0, death_signal=signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
