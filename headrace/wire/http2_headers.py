"""Header blocks of HTTP/2 (HPACK, RFC 7541): a reader for whatever a peer may write, a writer of plain literals.

A connection of ours carries a handful of header blocks in its whole life, so nothing is saved by indexing what we
write; what we read may use all of it: both tables, changes of the table's size, Huffman codes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from headrace.wire import http2_huffman

Header = tuple[bytes, bytes]

TABLE_BYTES = 4096
"""What the dynamic table may hold unless a setting says otherwise; we never do."""
_ENTRY_OVERHEAD = 32
_MAX_NUMBER = 1 << 28
_NO_TABLE = b"\x20"
_STATIC_NAMES = (
    ":authority,:method=GET,:method=POST,:path=/,:path=/index.html,:scheme=http,:scheme=https,:status=200,:status=204,"
    ":status=206,:status=304,:status=400,:status=404,:status=500,accept-charset,accept-encoding=gzip; deflate,"
    "accept-language,accept-ranges,accept,access-control-allow-origin,age,allow,authorization,cache-control,"
    "content-disposition,content-encoding,content-language,content-length,content-location,content-range,content-type,"
    "cookie,date,etag,expect,expires,from,host,if-match,if-modified-since,if-none-match,if-range,if-unmodified-since,"
    "last-modified,link,location,max-forwards,proxy-authenticate,proxy-authorization,range,referer,refresh,retry-after,"
    "server,set-cookie,strict-transport-security,transfer-encoding,user-agent,vary,via,www-authenticate"
)
_STATIC: tuple[Header, ...] = tuple(
    (name.encode(), value.replace(";", ",").encode())
    for name, _, value in (entry.partition("=") for entry in _STATIC_NAMES.split(","))
)


class HeaderError(ValueError):
    """A header block that cannot be read: the state of the connection is lost."""


class HeaderListTooLong(HeaderError):
    """More than the limit."""


class HeaderReader:
    """Reads the blocks of one connection, in their order. `max_bytes` bounds what one block may come to, counted as
    RFC 9113 does (32 bytes a field beside its text)."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._table: deque[Header] = deque()
        self._table_bytes = 0
        self._table_limit = TABLE_BYTES

    def read(self, block: bytes) -> list[Header]:
        """Its fields, in order."""
        try:
            return self._read(block)
        except IndexError as short:
            raise HeaderError("a header block is cut short") from short
        except http2_huffman.HuffmanError as error:
            raise HeaderError(f"a header string cannot be read: {error}") from error

    def _read(self, block: bytes) -> list[Header]:
        fields: list[Header] = []
        at, size, total = 0, len(block), 0
        while at < size:
            first = block[at]
            if first & 0x80:
                index, at = _number(block, at, 7)
                field = self._indexed(index)
            elif first & 0x40:
                field, at = self._literal(block, at, 6)
                self._remember(field)
            elif first & 0x20:
                if fields:
                    raise HeaderError("the table's size changes within a block")
                limit, at = _number(block, at, 5)
                if limit > TABLE_BYTES:
                    raise HeaderError(f"a table of {limit} bytes, more than {TABLE_BYTES}")
                self._table_limit = limit
                self._evict(0)
                continue
            else:
                field, at = self._literal(block, at, 4)
            total += len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD
            if total > self._max_bytes:
                raise HeaderListTooLong(f"headers of over {self._max_bytes} bytes")
            fields.append(field)
        return fields

    def _literal(self, block: bytes, at: int, bits: int) -> tuple[Header, int]:
        index, at = _number(block, at, bits)
        if index:
            name = self._indexed(index)[0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        return (name, value), at

    def _indexed(self, index: int) -> Header:
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        own = index - len(_STATIC) - 1
        if not 0 <= own < len(self._table):
            raise HeaderError(f"no header has the index {index}")
        return self._table[own]

    def _remember(self, field: Header) -> None:
        size = len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD
        self._evict(size)
        if size <= self._table_limit:
            self._table.appendleft(field)
            self._table_bytes += size

    def _evict(self, coming: int) -> None:
        while self._table and self._table_bytes + coming > self._table_limit:
            name, value = self._table.pop()
            self._table_bytes -= len(name) + len(value) + _ENTRY_OVERHEAD


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    number = block[at] & most
    at += 1
    if number < most:
        return number, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        number += (byte & 0x7F) << shift
        if number > _MAX_NUMBER or shift > 28:
            raise HeaderError("a number in a header block is too large")
        if not byte & 0x80:
            return number, at
        shift += 7


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    coded = block[at] & 0x80
    length, at = _number(block, at, 7)
    end = at + length
    if end > len(block):
        raise HeaderError("a header block is cut short")
    text = block[at:end]
    return (http2_huffman.decode(text) if coded else text), end


def write_headers(fields: Iterable[Header], *, without_table: bool = False) -> bytes:
    """A block of literals that leave no trace in the table. `without_table` tells the peer, which made its table
    smaller, that we use none."""
    block = bytearray(_NO_TABLE if without_table else b"")
    for name, value in fields:
        block.append(0)
        _write_string(block, name)
        _write_string(block, value)
    return bytes(block)


def _write_string(block: bytearray, text: bytes) -> None:
    length = len(text)
    if length < 0x7F:
        block.append(length)
    else:
        block.append(0x7F)
        length -= 0x7F
        while length > 0x7F:
            block.append(length & 0x7F | 0x80)
            length >>= 7
        block.append(length)
    block += text
