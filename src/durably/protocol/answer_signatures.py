"""Signatures over a whole answer: status, deciding headers, body, and the call that it answers.

The protocol's own signature (``x-inngest-signature``) covers only an answer's body. So an attacker on the network could
turn a failure's status into a success's, or send the answer of another call. Durably's apps add
``x-durably-signature``, which covers everything that an engine acts on, and announce it at the sync
(``answerSignature``). Durably's engine requires it of these apps. Other SDKs do not send it, and other engines ignore
it.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from .headers import Header
from .signatures import SignatureError, strip_key_prefix

VERSION = "v1"
"""Value of ``answerSignature`` in a function's runtime."""
DECIDING_HEADERS = (Header.NO_RETRY, Header.RETRY_AFTER, Header.REQUEST_VERSION, Header.SDK)
"""Headers that an engine acts on, in the order in which they are signed."""


def sign_answer(status: int, headers: Mapping[str, str], body: bytes, *, call_signature: str, key: str) -> str:
    """The header's value: ``v1=<hex HMAC-SHA256>``.

    ``headers`` has lower-case names. ``call_signature`` is the ``x-inngest-signature`` of the call, which identifies it
    and contains the time.
    """
    lines = [
        "durably-answer-v1",
        str(int(status)),
        *(headers.get(name, "") for name in DECIDING_HEADERS),
        call_signature,
    ]
    mac = hmac.new(strip_key_prefix(key).encode(), "\n".join(lines).encode() + b"\n", hashlib.sha256)
    mac.update(body)
    return f"{VERSION}={mac.hexdigest()}"


def verify_answer(
    status: int, headers: Mapping[str, str], body: bytes, *, call_signature: str, keys: Iterable[str | None]
) -> None:
    """Check the signature with each key; ``None`` is skipped. Raises ``SignatureError``."""
    given = headers.get(Header.ANSWER_SIGNATURE)
    if not given:
        raise SignatureError(f"the {Header.ANSWER_SIGNATURE} header is missing")
    for name in (*DECIDING_HEADERS, Header.ANSWER_SIGNATURE):
        text = headers.get(name, "")
        if not (text.isascii() and text.isprintable()):
            raise SignatureError(f"the {name} header is not printable ASCII")
    for key in filter(None, keys):
        if hmac.compare_digest(sign_answer(status, headers, body, call_signature=call_signature, key=key), given):
            return
    raise SignatureError(
        f"the {Header.ANSWER_SIGNATURE} header is not made with the engine's key for this status, these headers, this "
        "body and this call"
    )
