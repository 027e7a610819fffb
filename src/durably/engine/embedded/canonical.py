"""Canonical JSON (RFC 8785), quickly where that is easy.

Apps verify a call's signature over its body in canonical form (spec §4.1.3), and some over its bytes as they are. To
suit both, an engine with a signing key keeps events and memos canonical, and puts them together in order.

One thing cannot suit both: an integer beyond 2**53, whose canonical form has lost digits. Data is worth more than
that, so it is stored and sent as it is, and the signature is that of the canonical form.
"""

import json
import re

import msgspec
import rfc8785

from durably.protocol.signatures import canonicalize

_HARD = re.compile(rb"[0-9][.eE]|[0-9]{16}|[\xf0-\xf4]|\\u[dD][89abAB]")
"""What RFC 8785 may write otherwise than msgspec: fractions and exponents, large integers, and keys outside of the
basic plane, which it sorts by UTF-16. Found in texts too, which costs time but no correctness."""
_LARGE = re.compile(rb"[0-9]{16}")


def canonical_json(raw: bytes) -> bytes:
    """``raw`` is JSON. Where its canonical form would say something else, it only gets sorted."""
    if _HARD.search(raw):
        try:
            return rfc8785.dumps(json.loads(raw))
        except (ValueError, RecursionError):
            pass
    return msgspec.json.encode(msgspec.json.decode(raw), order="sorted")


def to_sign(body: bytes) -> bytes:
    """What the signature of a body made of such parts is made over."""
    return canonicalize(body) or body if _LARGE.search(body) else body
