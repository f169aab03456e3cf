"""Source of a component whose Process stream says anything but what the contract asks for. Runs inside the bundle; the
test gives it by `SOURCE`. Bodies of inputs: `calm` is answered as it should be; for any other a burst of random
events comes, then mostly the end it waits for."""

SOURCE = """
import os
import random
import sys

import grpc

import headrace.sdk.server as server_module
from headrace.api.component.v1 import component_pb2 as pb
from headrace.sdk import Component, Context

component = Component()
TESTS = %(root)r
sys.path.append(TESTS)
from tests.support.fuzz import fill, mutated  # noqa: E402

RNG = random.Random(%(seed)d + os.getpid() * %(vary)d)
TRIED = open(%(count)r, "a", buffering=1)


@component.action
async def work(body: bytes, ctx: Context) -> None:
    pass


def burst(calls):
    for _ in range(RNG.randrange(1, 12)):
        response = fill(pb.ProcessResponse(), RNG)
        for event in response.events:
            if RNG.random() < 0.8:
                event.call = RNG.choice(calls)
        for ended in response.ended:
            if RNG.random() < 0.8:
                fit(ended, [RNG.choice(calls) for _ in range(RNG.randrange(4))])
        yield response


def fit(ended, calls):
    ended.calls[:] = calls
    ended.bodies[:] = [b"x" for _ in calls] if RNG.random() < 0.5 else []
    ended.started_at_mono_ns[:] = ended.ended_at_mono_ns[:] = [RNG.choice((0, 1, 2**63, 2**64 - 1)) for _ in calls]


def parses(frame):
    try:
        pb.ProcessResponse.FromString(frame)
    except Exception:
        return False
    return True


async def process(requests, context):
    tried = 0
    async for raw in requests:
        request = pb.ProcessRequest.FromString(raw)
        if request.HasField("ping"):
            yield pb.ProcessResponse(pong=pb.Pong(nonce=request.ping.nonce)).SerializeToString()
        bodies = {given.call: given.body for given in request.inputs}
        bodies |= zip(request.lot.calls, request.lot.bodies)
        calls = list(bodies)
        if not calls:
            continue
        calm = b"calm" in bodies.values()
        for response in () if calm else burst(calls):
            tried += max(1, len(response.events))
            frame = response.SerializeToString()
            if RNG.random() < %(broken)f:
                frame = mutated(frame, RNG)
                if not parses(frame) and RNG.random() < 0.97:
                    continue  # it ends the stream, and with it this process: seldom is enough
            yield frame
        TRIED.write("%%d\\n" %% tried)
        tried = 0
        ends = pb.ProcessResponse()
        for call, body in bodies.items():
            if body == b"calm":
                ends.events.add(call=call).reply.body = b"calm"
            if body == b"calm" or RNG.random() < 0.9:
                ends.events.add(call=call).end.started_at_mono_ns = RNG.choice((0, 1, 2**63, 2**64 - 1))
        yield ends.SerializeToString()


class Raw:
    def __init__(self, raw):
        self.raw = raw

    def SerializeToString(self):
        return self.raw


async def on_own_socket(self, rpc):
    async def requests():
        while (request := await rpc.read()) is not grpc.aio.EOF:
            yield request.SerializeToString()

    async for raw in process(requests(), None):
        await rpc.write(Raw(raw))


server_module.ComponentServicer.process = on_own_socket


class Collector:
    def add_generic_rpc_handlers(self, handlers):
        pass

    def add_registered_method_handlers(self, service, handlers):
        self.service, self.handlers = service, handlers


def fuzzing_server(servicer):
    from headrace.api.component.v1 import component_pb2_grpc

    server = grpc.aio.server(options=server_module.SERVER_OPTIONS)
    collector = Collector()
    component_pb2_grpc.add_ComponentServiceServicer_to_server(servicer, collector)
    handlers = {**collector.handlers, "Process": grpc.stream_stream_rpc_method_handler(process)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(collector.service, handlers),))
    return server


server_module.make_server = fuzzing_server
"""
