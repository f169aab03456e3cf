"""`python -m services.registry`: components, their immutable revisions and bundles."""

from __future__ import annotations

import argparse
import sys

from headrace.edge.operator_ports import add_operator_ports
from headrace.edge.parent_death import tie_to_parent


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="services.registry", description=__doc__)
    parser.add_argument("--nats", required=True, metavar="URL", help="broker, for example nats://127.0.0.1:4222")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="ADDR", help="host:port (0 for a free one)")
    parser.add_argument("--replicas", type=int, default=0, metavar="N", help="copies of each bucket; 0: 3 on a cluster")
    add_operator_ports(parser)
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser.parse_args(arguments)


def main() -> int:
    tie_to_parent()  # early: the imports below take a while
    arguments = parse_arguments()
    from headrace.edge.service_runner import run_service
    from services.registry.app import RegistryApp

    app = RegistryApp(
        arguments.nats,
        arguments.listen,
        replicas=arguments.replicas,
        metrics=arguments.metrics,
        admin=arguments.admin,
    )
    return run_service("registry", app, log_level=arguments.log_level, stop_timeout_s=4.0)


if __name__ == "__main__":
    sys.exit(main())
