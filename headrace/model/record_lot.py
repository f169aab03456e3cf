"""A lot of records on their way from the path, with what all who look at it need found once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from headrace.model.hop_record import HopOutcome, HopRecord, Record

_PROCESSED = HopOutcome.PROCESSED
_PLACE = {name: place for place, name in enumerate(HopRecord._fields)}


class RecordLot:
    """Never changed. Most lots are of hops that went well, all of them sampled or none: whoever treats each record can
    see in a column that there is nothing to do."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    @cached_property
    def hops(self) -> Sequence[HopRecord]:
        """Those of hops."""
        kinds = set(map(type, self.records))
        if kinds == {HopRecord}:
            return self.records  # type: ignore[return-value]
        return [record for record in self.records if type(record) is HopRecord]

    @cached_property
    def _columns(self) -> tuple[tuple[Any, ...], ...]:
        return tuple(zip(*self.hops, strict=True)) or ((),) * len(HopRecord._fields)

    def column(self, field: str) -> tuple[Any, ...]:
        """One field of all hops."""
        return self._columns[_PLACE[field]]

    @cached_property
    def went_wrong(self) -> Sequence[Record]:
        """What failed, or had to be tried again; in order."""
        count = len(self.hops)
        plain = self.column("outcome").count(_PROCESSED) == count == self.column("attempt").count(1)
        if plain and count == len(self.records):
            return ()
        return [record for record in self.records if went_wrong(record)]

    @cached_property
    def all_sampled(self) -> bool:
        """All records, also those that are no hops."""
        count = len(self.records)
        if len(self.hops) == count:
            return self.column("sampled").count(True) == count
        return all(record.sampled for record in self.records)


def went_wrong(record: Record) -> bool:
    """See `RecordLot.went_wrong`."""
    return record.failed or (type(record) is HopRecord and record.attempt > 1)
