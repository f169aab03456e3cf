"""What modules that may be compiled make of many inputs: `python -m tests.support.compiled_cases SEED`, a line each.

Run once in pure Python and once compiled, the lines must be the same, errors included.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator

from headrace import compiled
from headrace.model import message_ids
from headrace.ports import BatchMessage, Fence
from headrace.wire import jetstream, nats_protocol, spliced_envelope
from headrace.wire.jetstream_answers import parse_pub_ack

CASES = 400
VALID = (
    b"MSG hr.a.b 7 5\r\nhello\r\n",
    b"MSG hr.a.b 7 $JS.ACK.S.C.1.2.3.1700000000000000000.0 0\r\n\r\n",
    b"HMSG hr.a.b 7 12 17\r\nNATS/1.0\r\n\r\nhello\r\n",
    b"HMSG hr.a.b 18446744073709551616 r 12 12\r\nNATS/1.0\r\n\r\n\r\n",
    b'INFO {"version":"2.15.1"}\r\n',
    b"PING\r\n",
    b"-ERR 'Stale Connection'\r\n",
)
ACKS = (
    b'{"stream":"S","seq":7}',
    b'{"stream":"S","seq":7,"duplicate":true}',
    b'{"error":{"code":503,"err_code":10077,"description":"full"},"stream":"S","seq":0}',
)
SUBJECTS = (
    b"$JS.ACK.S.C.1.2.3.1700000000000000000.0",
    b"$JS.ACK.d.a.S.C.9223372036854775808.2.3.18446744073709551615.0.token",
)
HEADERS = (
    jetstream.publish_headers("a" * 32, "00-" + "b" * 32 + "-" + "c" * 16 + "-01"),
    jetstream.publish_headers("a" * 31, ""),
    b"NATS/1.0 408 Request Timeout\r\n\r\n",
)


def spoiled(chance: random.Random, raw: bytes) -> bytes:
    """Sometimes with a byte changed, taken away or put in."""
    at = chance.randrange(len(raw) + 1)
    match chance.randrange(6):
        case 0:
            return raw[:at] + bytes([chance.randrange(256)]) + raw[at + 1 :]
        case 1:
            return raw[:at] + raw[at + 1 :]
        case 2:
            return raw[:at] + bytes([chance.randrange(256)]) + raw[at:]
    return raw


def frames(chance: random.Random) -> object:
    """A stream in pieces."""
    stream = b"".join(spoiled(chance, chance.choice(VALID)) for _ in range(chance.randrange(1, 8)))
    reader, found = nats_protocol.FrameReader(), []
    while stream:
        cut = chance.randrange(1, 40)
        found.append(reader.feed(stream[:cut]))
        stream = stream[cut:]
    return found


def ack_subject(chance: random.Random) -> object:
    raw = spoiled(chance, chance.choice(SUBJECTS))
    return jetstream.delivery_numbers(raw), tuple(jetstream.parse_ack_subject(raw))


def headers(chance: random.Random) -> object:
    raw = spoiled(chance, chance.choice(HEADERS))
    return jetstream.delivery_headers(raw), jetstream.parse_delivery_headers(raw), jetstream.parse_status(raw)


def written(chance: random.Random) -> object:
    text = spoiled(chance, b"id-1").decode("latin-1")
    fence = Fence("hr.c", chance.randrange(1 << 64)) if chance.randrange(2) else None
    message = BatchMessage("hr.a", b"x", text, "", True, chance.randrange(1 << 63))
    return jetstream.publish_headers(text, text, fence), jetstream.batch_headers(message, b"b", 1, last=True)


def answer(chance: random.Random) -> object:
    return repr(parse_pub_ack(spoiled(chance, chance.choice(ACKS))))


def envelope(chance: random.Random) -> object:
    text = spoiled(chance, b"execution").decode("latin-1")
    body = bytes(chance.randrange(256) for _ in range(chance.choice((0, 1, 127, 128, 300))))
    splicer = spliced_envelope.EnvelopeSplicer("start")
    now = chance.choice((0, 1, 127, 128, 1 << 32, 1_700_000_000_000_000_000, (1 << 63) - 1))
    ids = message_ids.output_message_id(text, "one", str(chance.randrange(9)), "two")
    return ids, splicer.sealed(text, ids, body, "application/json", now, ids, now)


FAMILIES: tuple[Callable[[random.Random], object], ...] = (frames, ack_subject, headers, written, answer, envelope)


def lines(seed: int) -> Iterator[str]:
    """One for each case; a case that is refused tells the refusal."""
    for number in range(CASES):
        for family in FAMILIES:
            chance = random.Random(f"{seed}.{number}.{family.__name__}")
            try:
                result = repr(family(chance))
            except Exception as error:
                result = f"{type(error).__name__}: {error}"
            yield f"{family.__name__} {number} {result}"


if __name__ == "__main__":
    print(compiled.code())
    for line in lines(int(sys.argv[1])):
        print(line)
