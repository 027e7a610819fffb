"""Canonical JSON (RFC 8785), quickly where that is easy.

Apps verify a call's signature over its body in canonical form (spec §4.1.3), and some over its bytes as they are. To
suit both, an engine with a signing key keeps events and memos canonical, and puts them together in order.
"""

import re

import msgspec

from durably.protocol.signatures import canonicalize

_HARD = re.compile(rb"[0-9][.eE]|[0-9]{16}|[\xf0-\xf4]")
"""What RFC 8785 may write otherwise than msgspec: fractions and exponents, integers beyond 2**53, and keys outside of
the basic plane, which it sorts by UTF-16. Found in texts too, which costs time but no correctness."""


def canonical_json(raw: bytes) -> bytes:
    """``raw`` is JSON; where it has no canonical form, such as integers beyond 2**53, it only gets sorted."""
    if _HARD.search(raw) and (canonical := canonicalize(raw)) is not None:
        return canonical
    return msgspec.json.encode(msgspec.json.decode(raw), order="sorted")
