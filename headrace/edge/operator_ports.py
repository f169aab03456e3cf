"""Options of a process' ports for operators, the same for every service."""

from __future__ import annotations

import argparse


def add_operator_ports(parser: argparse.ArgumentParser, *, channelz: bool = True) -> None:
    """`--metrics` and, for who serves gRPC, `--admin`; both are off unless given."""
    parser.add_argument(
        "--metrics",
        default="",
        metavar="HOST:PORT",
        help="serve /metrics, /healthz and /readyz over HTTP (port 0: a free one); default: not at all",
    )
    if channelz:
        parser.add_argument(
            "--admin",
            default="",
            metavar="HOST:PORT",
            help="serve channelz (what connections this process has) on this loopback address; default: not at all",
        )
