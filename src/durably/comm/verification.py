"""Verification of requests: by signature, and in development by refusing requests from web pages.

The module also signs the answers, with the same keys.
"""

import time
import uuid
from dataclasses import dataclass
from functools import partial

from durably.errors import BrowserRequestError, CallMismatchError
from durably.protocol import signatures
from durably.protocol.answer_signatures import sign_answer
from durably.protocol.call import CallContext
from durably.protocol.headers import DISCOVER, Header, Query
from durably.protocol.limits import MAX_CANONICAL_BYTES
from durably.protocol.signatures import SignatureMismatchError
from durably.transport import IO

from .models import CommRequest, CommResponse

_QUICK_BYTES = 1024 * 1024
"""The largest body that is hashed on an event loop: a millisecond or two."""
_FORM_TYPES = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
"""Content types that a page may send to another origin without asking first (Fetch Standard, "simple" requests)."""
_PAGE_HEADERS = ("origin", "sec-fetch-site")
"""Headers of browsers that a page cannot remove. Engines send neither."""


async def find_key(req: CommRequest, keys: tuple[str | None, str | None], io: IO) -> str:
    """The key that signed a request.

    The signature is compared with the body's bytes first. If it does not fit, a platform may have re-encoded the
    body: small bodies are verified in canonical form too, never on an event loop. Raises ``SignatureError``.
    """
    given = (req.body, req.header(Header.SIGNATURE), keys, time.time())
    check = partial(signatures.verify, *given)
    try:
        return check() if len(req.body) <= _QUICK_BYTES else await io.compute(check)
    except SignatureMismatchError:
        check = partial(signatures.verify_canonical, *given)
        return check() if len(req.body) > MAX_CANONICAL_BYTES else await io.compute(check)


@dataclass(frozen=True)
class Signer:
    """Signs the answer to one request. ``key`` is the one that signed it, ``request_signature`` its header."""

    key: str
    request_signature: str

    def sign(self, response: CommResponse) -> None:
        headers, body = response.headers, response.body
        headers[Header.SIGNATURE.value] = signatures.sign(body, self.key, int(time.time()))
        headers[Header.ANSWER_SIGNATURE.value] = sign_answer(
            response.status_code, headers, body, call_signature=self.request_signature, key=self.key
        )


def refuse_pages(req: CommRequest) -> None:
    """In development nothing is signed, so any page that a developer opens could call functions.

    Raises ``BrowserRequestError``.
    """
    for name in _PAGE_HEADERS:
        if req.headers.get(name):
            raise BrowserRequestError(
                f"a web page made this request (it has the header {name}); in development mode the endpoint is called "
                "by engines and command lines only"
            )


def refuse_forms(req: CommRequest) -> None:
    """For calls, which are JSON. Raises ``BrowserRequestError``."""
    content_type = req.headers.get(Header.CONTENT_TYPE.value, "").partition(";")[0].strip().lower()
    if content_type in _FORM_TYPES:
        raise BrowserRequestError(
            f"a call has the content type application/json, not {content_type}, which web pages may send"
        )


def check_addressee(context: CallContext, req: CommRequest) -> None:
    """Refuse a signed call if its query names another function or step than its body: only the body is signed.

    Inngest servers send a UUID of their own as ``fn_id``, and "step" as ``step_id`` in every call. These cannot be
    compared with the query. Raises ``CallMismatchError``.
    """
    if not context.fn_id or _is_uuid(context.fn_id):
        return
    for name, query, body in (
        ("function", req.query(Query.FUNCTION_ID), context.fn_id),
        ("step", req.query(Query.STEP_ID), context.step_id or DISCOVER),
    ):
        if query != body:
            raise CallMismatchError(f"the call is for the {name} {body!r}, and its URL names {query!r}")


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
