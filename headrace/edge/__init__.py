"""Adapters to the outside: NATS, gRPC, files, processes, environment."""
