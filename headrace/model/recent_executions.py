"""What a process remembers of the executions it took part in, for some minutes, in bounded memory.

The newest records are kept as they are. When newer ones push them out they are packed (some 300 bytes each) and kept
until there is no room. Under load not every execution can stay for minutes: then one in two, four, ... of them does,
chosen by its id, so that all processes choose the same ones; what failed or was asked for stays besides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence

import msgspec

from headrace.model.hop_record import HopOutcome, HopRecord, Record, ReplyPart, RootRecord, Site

NEWEST = 1_024
PACKED = 12_288
HORIZON_S = 120.0
"""How long what is chosen is meant to stay; half of `PACKED` may be chosen in this time."""
MAX_SITES = 1_000
MAX_LEVEL = 16
LOOK_S = 5.0
MAX_MARKED = 4_096
KEY_BYTES = 32

_ROOT, _HOP = 0, 1
_PROCESSED = HopOutcome.PROCESSED
_DULL_DIGITS = tuple(
    frozenset(digit for digit in "0123456789abcdefABCDEF" if int(digit, 16) % 2**level) for level in range(5)
)
"""By level (4 for all above): with these the eighth digit of an execution's id says that it is not chosen."""
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()


class RecentExecutions:
    """Of one process; not thread-safe. `now` is any clock of seconds that does not go back."""

    def __init__(self, newest: int = NEWEST, packed: int = PACKED, horizon_s: float = HORIZON_S) -> None:
        self._limit = newest
        self._horizon_s = horizon_s
        self._newest: deque[Record] = deque()
        self._packed: deque[bytes] = deque(maxlen=packed)
        self._capacity = packed
        self._sites: list[Site] = []
        self._site_numbers: dict[int, int] = {}
        self._marked: dict[str, None] = {}
        self._seen = 0
        self._looked_at = -LOOK_S
        self.level = 0
        """One execution in 2^level is chosen to stay."""

    def __len__(self) -> int:
        return len(self._newest) + len(self._packed)

    @property
    def packed_bytes(self) -> int:
        return sum(map(len, self._packed))

    def note(self, records: Sequence[Record], now: float) -> None:
        """Takes a lot of records."""
        newest = self._newest
        newest.extend(records)
        self._seen += len(records)
        self._choose_level(now)
        level = self.level
        old: Iterable[Record] = [newest.popleft() for _ in range(len(newest) - self._limit)]
        if level:
            # Most are as uneventful as they are many: those are looked at here, all others by `_stays`.
            dull, marked = _DULL_DIGITS[min(level, 4)], self._marked
            old = [
                record
                for record in old
                if record.execution_id[7:8] not in dull
                or type(record) is not HopRecord
                or record.outcome is not _PROCESSED
                or record.attempt > 1
                or record.execution_id in marked
            ]
            old = filter(self._stays, old)
        self._packed.extend(map(self._pack, old))

    def mark(self, executions: Collection[str]) -> None:
        """These are to stay, whatever is chosen: those somebody asked for, and those that failed elsewhere."""
        for execution in executions:
            self._marked[execution] = None
        while len(self._marked) > MAX_MARKED:
            del self._marked[next(iter(self._marked))]

    def of(self, executions: Collection[str]) -> list[Record]:
        """All that is known of these executions, oldest first."""
        wanted = frozenset(executions)
        keys = frozenset(map(_key, wanted))
        found = [self._unpack(packed) for packed in self._packed if packed[:KEY_BYTES] in keys]
        return [record for record in (*found, *self._newest) if record.execution_id in wanted]

    def all(self) -> Iterator[Record]:
        """Everything that is known, newest first."""
        yield from reversed(self._newest)
        for packed in reversed(self._packed):
            yield self._unpack(packed)

    def _choose_level(self, now: float) -> None:
        """By how many records came within some seconds, and how many there is room for in that time. It rises at once
        and falls by one at a time: a pause is no reason to push out what was chosen before it."""
        elapsed = now - self._looked_at
        if elapsed >= LOOK_S:
            self.level = max(self._level_for(self._seen / elapsed), self.level - 1)
            self._seen, self._looked_at = 0, now
        else:
            self.level = max(self._level_for(self._seen / LOOK_S), self.level)

    def _level_for(self, per_s: float) -> int:
        room_per_s = self._capacity / 2 / self._horizon_s
        level = 0
        while per_s > room_per_s * 2**level and level < MAX_LEVEL:
            level += 1
        return level

    def _stays(self, record: Record) -> bool:
        if not self.level or record.failed or record.execution_id in self._marked:
            return True
        if isinstance(record, HopRecord) and (record.attempt > 1 or record.outcome is not HopOutcome.PROCESSED):
            return True
        return is_chosen(record.execution_id, self.level)

    def _pack(self, record: Record) -> bytes:
        if isinstance(record, HopRecord):
            sender = -1 if record.sender is None else self._number(record.sender)
            packed = _encoder.encode((_HOP, self._number(record.site), sender, *record[2:_PACKED]))
            return _key(record.execution_id) + packed
        reply = record.reply
        part = (self._number(reply.sender), *reply[1:]) if reply is not None else None
        index = _REPLY_AT
        packed = _encoder.encode((_ROOT, self._number(record.site), *record[1:index], part, *record[index + 1 :]))
        return _key(record.execution_id) + packed

    def _unpack(self, packed: bytes) -> Record:
        kind, site, *rest = _decoder.decode(memoryview(packed)[KEY_BYTES:])
        if kind == _HOP:
            sender, *values = rest
            values[_OUTCOME_AT] = HopOutcome(values[_OUTCOME_AT])
            return HopRecord(self._sites[site], None if sender < 0 else self._sites[sender], *values)
        phases, part = rest[_PHASES_AT - 1], rest[_REPLY_AT - 1]
        rest[_PHASES_AT - 1] = tuple(tuple(phase) for phase in phases)
        rest[_REPLY_AT - 1] = ReplyPart(self._sites[part[0]], *part[1:]) if part is not None else None
        return RootRecord(self._sites[site], *rest)

    def _number(self, site: Site) -> int:
        """Sites are few; past a bound what is packed, which names them by number, is forgotten with them."""
        number = self._site_numbers.get(id(site))
        if number is None:
            if len(self._sites) >= MAX_SITES:
                self._packed.clear()
                self._sites.clear()
                self._site_numbers.clear()
            number = self._site_numbers[id(site)] = len(self._sites)
            self._sites.append(site)
        return number


_PACKED = HopRecord._fields.index("input_stored_at_unix_ns")
"""What comes after is for histograms alone."""
_OUTCOME_AT = HopRecord._fields.index("outcome") - 2
_PHASES_AT = RootRecord._fields.index("phases")
_REPLY_AT = RootRecord._fields.index("reply")


def _key(execution: str) -> bytes:
    """What a packed record begins with, so that those of an execution are found without unpacking."""
    return execution.encode()[:KEY_BYTES].ljust(KEY_BYTES)


def is_chosen(execution: str, level: int) -> bool:
    """Whether an execution is among the one in 2^level that stay; what is chosen at a level is at every lower one."""
    if execution[7:8] in _DULL_DIGITS[min(level, 4)]:
        return False
    try:
        return not int(execution[:8], 16) & ((1 << level) - 1)
    except ValueError:
        return not hash_of(execution) & ((1 << level) - 1)


def hash_of(text: str) -> int:
    """The same in every process, unlike `hash`."""
    value = 0
    for character in text[:64]:
        value = (value * 31 + ord(character)) & 0xFFFFFFFF
    return value
