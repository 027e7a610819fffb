"""Verification of requests: by signature, and by refusing those of web pages.

Requests from web pages are refused in development. The module also signs the answers, with the same keys.
"""

import functools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from durably.errors import BrowserRequestError, CallMismatchError
from durably.io.http_client import IO
from durably.protocol import signatures
from durably.protocol.call import CallContext, decode
from durably.protocol.headers import DISCOVER, Header
from durably.protocol.limits import CANONICAL_CPU_BURST, CANONICAL_CPU_SHARE, MAX_CANONICAL_BYTES
from durably.protocol.signatures import SignatureError, SignatureMismatchError, sign_answer

from .requests import CommRequest, CommResponse

_QUICK_BYTES = 1024 * 1024
"""Bytes of the largest body that is hashed on an event loop, which takes 1 to 2 ms."""
_FORM_TYPES = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
"""Content types that a page may send to another origin without a preflight (Fetch Standard, "simple" requests)."""
PAGE_HEADERS = frozenset(("origin", "sec-fetch-site"))
"""Headers of browsers that a page cannot remove. Engines send none of them."""


@dataclass(frozen=True)
class Verified:
    """A verified request: ``key`` signed it.

    ``body`` is the signed content: the request's body, or its canonical form.
    """

    key: str
    body: bytes


class CanonicalChecks:
    """Verifies bodies in canonical form, one at a time.

    The cost of badly signed bodies is limited, because any client may send them. Their CPU time is debited, and
    credited again at ``CANONICAL_CPU_SHARE``. Without credit no body is tried. Correctly signed bodies cost no credit.
    Thread-safe.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, cpu_clock: Callable[[], float] = time.thread_time
    ) -> None:
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="durably-verify")
        """The thread that verifies bodies if there is an event loop.

        It is not a thread of the app's pool.
        """
        self._lock = threading.Lock()
        self._clock, self._cpu_clock = clock, cpu_clock
        self._credit, self._credited_at = CANONICAL_CPU_BURST, clock()

    def verify(self, body: bytes, header: str | None, keys: tuple[str | None, str | None], now: float) -> Verified:
        """Raises ``SignatureError``."""
        with self._lock:
            if self._current_credit() <= 0:
                raise SignatureMismatchError(
                    "the signature does not match any of the signing keys (a re-encoded body is not recognised for "
                    "some seconds, because too many badly signed ones arrived)"
                )
            began = self._cpu_clock()
            try:
                return Verified(*signatures.verify_canonical(body, header, keys, now))
            except SignatureError:
                self._credit -= self._cpu_clock() - began
                raise

    def _current_credit(self) -> float:
        now = self._clock()
        earned = (now - self._credited_at) * CANONICAL_CPU_SHARE
        self._credit, self._credited_at = min(CANONICAL_CPU_BURST, self._credit + earned), now
        return self._credit


_checks = functools.cache(CanonicalChecks)
"""The checks of this process. After a fork the executor's thread is gone, and the lock may be held permanently."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_checks.cache_clear)


async def verify_request(req: CommRequest, keys: tuple[str | None, str | None], io: IO) -> Verified:
    """The key that signed a request, and the signed content.

    The signature of the received bytes is tried first. If that fails, the canonical form is tried, never on an event
    loop: the engine may have signed it, or a proxy may have re-encoded the body. Raises ``SignatureError``.
    """
    header = req.headers.get(Header.SIGNATURE)
    given = (req.body, header, keys, time.time())
    check = functools.partial(signatures.verify, *given)
    try:
        key = check() if len(req.body) <= _QUICK_BYTES else await io.compute(check, _checks().executor)
        verified = Verified(key, req.body)
    except SignatureMismatchError:
        if len(req.body) > MAX_CANONICAL_BYTES:
            signatures.verify_canonical(*given)  # raises the error with its reason
        verified = await io.compute(functools.partial(_checks().verify, *given), _checks().executor)
    return verified


class _RequestShape(msgspec.Struct, gc=False):
    """Fields that identify requests: ``ctx`` of a call, ``url`` of an in-band sync."""

    ctx: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    url: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_shape_decoder = msgspec.json.Decoder(_RequestShape)


def is_like_request(body: bytes) -> bool:
    """Whether an answer's body could be taken for a call or an in-band sync."""
    try:
        shape = decode(_shape_decoder, body)
    except msgspec.MsgspecError:
        return False
    return not (shape.ctx is msgspec.UNSET and shape.url is msgspec.UNSET)


@dataclass(frozen=True)
class Signer:
    """Signs the answer to one request.

    ``key`` signed the request, and ``request_signature`` is its header.

    The protocol's signature covers a body and a time, so it is valid for a request with this body too. A function's
    result that has the form of a request therefore gets Durably's signature only, which is not valid for requests. The
    answer to a sync has this form too, but as a request it changes nothing.
    """

    key: str
    request_signature: str

    def sign(self, response: CommResponse) -> None:
        headers, body = response.headers, response.body
        if Header.SYNC_KIND.value in headers or not is_like_request(body):
            headers[Header.SIGNATURE.value] = signatures.sign(body, self.key, int(time.time()))
        headers[Header.ANSWER_SIGNATURE.value] = sign_answer(
            response.status_code, headers, body, call_signature=self.request_signature, key=self.key
        )


def refuse_pages(req: CommRequest) -> None:
    """Refuse a request that a web page made.

    In development requests are unsigned, so any page that a developer opens could call functions.

    Raises ``BrowserRequestError``.
    """
    for name in sorted(PAGE_HEADERS):
        if req.headers.get(name):
            raise BrowserRequestError(
                f"a web page made this request (it has the header {name}); in development mode the endpoint is called "
                "by engines and command lines only"
            )


def refuse_forms(req: CommRequest) -> None:
    """Refuse content types of web forms, because calls are JSON.

    Raises ``BrowserRequestError``.
    """
    content_type = req.headers.get(Header.CONTENT_TYPE.value, "").partition(";")[0].strip().lower()
    if content_type in _FORM_TYPES:
        raise BrowserRequestError(
            f"a call has the content type application/json, not {content_type}, which web pages may send"
        )


def check_addressee(context: CallContext, function_id: str, step_id: str) -> None:
    """Refuse a signed call whose query names another function or step than its body.

    Only the body is signed. Calls of other engines lack ``function_slug``, and always have "step" as ``step_id``, so
    there is nothing to compare. Raises ``CallMismatchError``.
    """
    slug = context.function_slug
    if slug is None:
        return
    for name, query, body in (("function", function_id, slug), ("step", step_id, context.step_id or DISCOVER)):
        if query != body:
            raise CallMismatchError(f"the call is for the {name} {body!r}, and its URL names {query!r}")
