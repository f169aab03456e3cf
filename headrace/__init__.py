"""Headrace: real-time integration flows over NATS JetStream."""

__version__ = "0.1.0"

from headrace import compiled

compiled.install()
