"""The Huffman code of HTTP/2 header strings (RFC 7541, appendix B). Only what is read needs it: we write plain text."""

from __future__ import annotations

# Bits of the code of each symbol, 0 to 255 and the end of the string. The code is canonical: these say it all.
_LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b08060606"
    "0505050606060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717171817"
    "181816171817171717151617161717181615141616171715171616181516171715151615171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a17"
    "1a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
_END = 256
_LONGEST = max(_LENGTHS)


class HuffmanError(ValueError):
    """A string that is no Huffman code."""


def _symbols() -> dict[int, int]:
    """Symbol by code, with a one in front so that codes of any length differ."""
    found: dict[int, int] = {}
    code, length = 0, min(_LENGTHS)
    for symbol in sorted(range(len(_LENGTHS)), key=lambda known: (_LENGTHS[known], known)):
        code <<= _LENGTHS[symbol] - length
        length = _LENGTHS[symbol]
        found[1 << length | code] = symbol
        code += 1
    return found


_SYMBOLS: dict[int, int] = {}


def decode(data: bytes) -> bytes:
    """The text of a string; HuffmanError for a code that does not exist, and for padding that is none."""
    if not _SYMBOLS:
        _SYMBOLS.update(_symbols())
    text = bytearray()
    code = 1
    for byte in data:
        for shift in (7, 6, 5, 4, 3, 2, 1, 0):
            code = code << 1 | byte >> shift & 1
            symbol = _SYMBOLS.get(code)
            if symbol is not None:
                if symbol == _END:
                    raise HuffmanError("the end of the string is written out")
                text.append(symbol)
                code = 1
            elif code >> _LONGEST:
                raise HuffmanError("no such code")
    # What is left is padding: fewer than 8 bits, all ones.
    left = code.bit_length() - 1
    if left > 7 or code != (2 << left) - 1:
        raise HuffmanError("the padding is none")
    return bytes(text)
