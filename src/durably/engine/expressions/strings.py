"""CEL's string and bytes literals: quotes, prefixes and escapes.

One tolerance: an escape that CEL does not know stays as it is written, backslash included, because regular
expressions are written as ``'\\d+'`` and the public server takes them so.
"""

import re

_ESCAPE = re.compile(
    r"\\(?:([0-3][0-7][0-7])|[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([abfnrtv\\?\"'`]))"
)
_SIMPLE = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
}


def decode_string(literal: str) -> str | bytes:
    """The value of a literal as written, quotes and prefix included. Raises ``ValueError`` naming a bad escape."""
    opening = min(position for position in (literal.find('"'), literal.find("'")) if position >= 0)
    prefix = literal[:opening].lower()
    quotes = 3 if literal[opening : opening + 3] in ('"""', "'''") and len(literal) >= opening + 6 else 1
    content = literal[opening + quotes : -quotes]
    if "b" in prefix:
        return _decode_bytes(content, is_raw="r" in prefix)
    return content if "r" in prefix else _ESCAPE.sub(_decode_escape, content)


def _decode_escape(match: re.Match[str]) -> str:
    octal, hexadecimal, short, long, simple = match.groups()
    if simple:
        return _SIMPLE.get(simple, simple)
    code = int(octal, 8) if octal else int(hexadecimal or short or long, 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise ValueError(f"the escape {match[0]} is no Unicode character")
    return chr(code)


def _decode_bytes(content: str, is_raw: bool) -> bytes:
    """In bytes, ``\\x`` and octal escapes are bytes, not characters."""
    if is_raw:
        return content.encode()
    decoded = bytearray()
    position = 0
    for match in _ESCAPE.finditer(content):
        decoded += content[position : match.start()].encode()
        octal, hexadecimal = match[1], match[2]
        if octal or hexadecimal:
            decoded.append(int(octal, 8) if octal else int(hexadecimal, 16))
        else:
            decoded += _decode_escape(match).encode()
        position = match.end()
    return bytes(decoded + content[position:].encode())
