"""Canonical JSON (RFC 8785) for calls to apps of other SDKs, quickly in common cases.

Durably's apps verify a call's signature over its bytes. Other SDKs verify it over the canonical form of the body
(spec §4.1.3), and some of these over the bytes as they are. To suit both, such apps are sent the canonical form.
Events and memos are stored as they came, so nothing is canonicalised before a call needs it.

One thing cannot suit both: an integer beyond 2**53, whose canonical form has lost digits. Data is worth more than
that, so it is sent as it is, and the signature is that of the canonical form.
"""

import json
from typing import Any

import msgspec
import re2
import rfc8785

from durably.protocol.signatures import canonicalize

from .bodies import CallData, build_body


def _compile(pattern: bytes) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # one character for each byte
    return re2.compile(pattern, options)


# re2 needs 2 ms for a megabyte, the standard library's re 50 ms, in one call that holds the interpreter's lock.
_LARGE = _compile(rb"(?:^|[^0-9.])[0-9]{16,}(?:$|[^0-9.eE])")
_FLOAT = _compile(rb"[0-9][.eE]")
_KEY_BEYOND_BMP = _compile(rb"(?:[\xf0-\xf4]|\\u[dD][89abAB])" + rb'(?:[^"\\]|\\(?s:.))*"[ \t\r\n]*:')
"""RFC 8785 sorts keys by UTF-16, and msgspec by code points: the order of keys outside of the basic plane differs.
Each pattern may also match inside of a text, which costs time but no correctness."""


def canonical_json(raw: bytes) -> bytes:
    """``raw`` is JSON. Integers that would be rounded keep their digits."""
    if _LARGE.search(raw) or _KEY_BEYOND_BMP.search(raw):
        try:
            return rfc8785.dumps(json.loads(raw))
        except (ValueError, RecursionError):
            pass
    decoder = _with_floats if _FLOAT.search(raw) else _plain
    return _sorted.encode(decoder.decode(raw))


def canonical_call(data: CallData) -> tuple[bytes, bytes]:
    """The body of a call to an app of another SDK, and the bytes to sign.

    Each event and memo is canonicalised by itself: one call into msgspec for all of them would hold the interpreter's
    lock for longer. Takes up to 0.1 s for a megabyte, so not for an event loop if the call is large.
    """
    canonical = msgspec.structs.replace(
        data,
        events=[canonical_json(event) for event in data.events],
        memos=[(step_id, canonical_json(memo)) for step_id, memo in data.memos],
        step_input=None if data.step_input is None else (data.step_input[0], canonical_json(data.step_input[1])),
    )
    body = build_body(canonical)
    return body, to_sign(body)


def to_sign(body: bytes) -> bytes:
    """The bytes to sign for a body that ``canonical_json`` made, or that is made of such parts."""
    return canonicalize(body) or body if _LARGE.search(body) else body


def _canonical_float(text: str) -> msgspec.Raw:
    """Where ``repr`` uses no exponent, it writes the same digits as ECMAScript, which RFC 8785 refers to."""
    value = float(text)
    shortest = repr(value)
    if "e" in shortest:
        return msgspec.Raw(rfc8785.dumps(value))
    return msgspec.Raw((shortest.removesuffix(".0") if value else "0").encode())


_plain = msgspec.json.Decoder()
_with_floats = msgspec.json.Decoder(float_hook=_canonical_float)
_sorted = msgspec.json.Encoder(order="sorted")
