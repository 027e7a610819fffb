"""Signing requests to apps, and recognising these signatures in answers.

An answer of an app is signed like a request of the engine, with the same key. Without the record, a server that sends
back a request's body and signature would complete a run.
"""

import time

from durably.protocol.sent_signatures import SentSignatures
from durably.protocol.signatures import sign

_sent = SentSignatures()
"""Of all engines in the process: whichever has made a signature, it is not an app's."""


def sign_request(body: bytes, key: str) -> str:
    """The header's value for a request that is sent now."""
    header = sign(body, key, int(time.time()))
    _sent.add(header)
    return header


def was_sent(header: str) -> bool:
    """Whether an engine of this process has signed a request with it, within ten minutes.

    Raises ``SignatureError`` for a malformed header.
    """
    return header in _sent
