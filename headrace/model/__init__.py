"""Pure domain: no IO, no clock, no grpc, nats or asyncio."""
