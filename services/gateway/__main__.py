"""`python -m services.gateway --nats URL --listen HOST:PORT`"""

from __future__ import annotations

import argparse
import gc
import os
import sys

from headrace.edge.fault_points import install_faults
from headrace.edge.operator_ports import add_operator_ports
from headrace.edge.service_runner import run_service
from headrace.model.attachments import LIMIT_VARIABLE, limit_of
from headrace.model.errors import InvalidInput
from headrace.model.names import DEFAULT_WORKSPACE
from services.gateway.app import Gateway, GatewaySettings
from services.gateway.http_connection import HEAD_LIMIT_S
from services.gateway.request_body import BODY_LIMIT_S
from services.gateway.upload_slots import MAX_UPLOADS

# A request is some hundred objects, next to none of them in a cycle: see services/sidecar/__main__.py.
COLLECT_AFTER = (10_000, 20, 20)


def main() -> int:
    gc.set_threshold(*COLLECT_AFTER)
    parser = argparse.ArgumentParser(prog="services.gateway", description="HTTP gateway: webhooks and their replies.")
    parser.add_argument("--nats", required=True, metavar="URL", help="NATS server, or several with commas between")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument("--workspace", default=DEFAULT_WORKSPACE)
    parser.add_argument("--name", default="", help="name of this gateway; drawn when not given")
    parser.add_argument(
        "--grace", type=float, default=2.0, metavar="SECONDS", help="time for requests in flight when it stops"
    )
    parser.add_argument("--max-requests", type=int, default=2_000, help="requests in work at once, then 429")
    parser.add_argument("--head-limit", type=float, default=HEAD_LIMIT_S, metavar="SECONDS", help="then 408")
    parser.add_argument(
        "--body-limit",
        type=float,
        default=BODY_LIMIT_S,
        metavar="SECONDS",
        help="for a request's body to come (then 408), and for a response to be read",
    )
    parser.add_argument(
        "--max-uploads", type=int, default=MAX_UPLOADS, help="large bodies and forms that come in at once, then 429"
    )
    add_operator_ports(parser, channelz=False)
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    if not port.isdigit():
        parser.error(f"--listen {arguments.listen!r} is not HOST:PORT")
    try:
        limit = limit_of(os.environ.get(LIMIT_VARIABLE, ""))
    except InvalidInput as error:
        parser.error(str(error))
    settings = GatewaySettings(
        nats_url=arguments.nats,
        host=host.strip("[]") or "127.0.0.1",
        port=int(port),
        workspace=arguments.workspace,
        name=arguments.name,
        grace_s=arguments.grace,
        max_requests=arguments.max_requests,
        head_limit_s=arguments.head_limit,
        body_limit_s=arguments.body_limit,
        max_uploads=arguments.max_uploads,
        attachment_limit=limit,
        metrics=arguments.metrics,
    )
    try:
        install_faults(os.environ, "gateway")
    except InvalidInput as error:
        parser.error(str(error))
    return run_service(
        "gateway", Gateway(settings), log_level=arguments.log_level, stop_timeout_s=arguments.grace + 6.0
    )


if __name__ == "__main__":
    sys.exit(main())
