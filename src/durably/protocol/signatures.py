"""Signatures of requests and answers, and the bearer token (spec §4.1.3, §4.1.4)."""

import hashlib
import hmac
import json
import re
from array import array
from collections.abc import Iterable, Mapping

import rfc8785

from .errors import Error, ErrorCode
from .headers import Header
from .limits import MAX_CANONICAL_BYTES, SIGNATURE_TOLERANCE

_PREFIX = re.compile(r"^signkey-\w+-")
_BARE_PREFIX = re.compile(r"signkey(-\w*-?)?")
_VISIBLE = re.compile(r"[!-~]+")
_QUOTES = "\"'`"
_HEADER = re.compile(r"t=([0-9]{1,12})&s=([0-9a-fA-F]{64})")
_MAX_HEADER_LENGTH = 256
_SECURE_KEY_LENGTH = 32
_MAX_EXACT = 2**53


class SignatureError(Error):
    """A request or an answer has no valid signature.

    The message never contains a key or a signature.
    """

    code = ErrorCode.SIG_VERIFICATION_FAILED
    include_stack = False
    is_retriable = False

    def __init__(self, message: str, code: ErrorCode = ErrorCode.SIG_VERIFICATION_FAILED) -> None:
        super().__init__(message)
        self.code = code


class SignatureMismatchError(SignatureError):
    """The signature matches none of the keys for these bytes."""


class SigningKeyInvalidError(Error, ValueError):
    """A signing key is empty, has nothing after its prefix, or is malformed.

    The message names the setting, never the key.
    """

    code = ErrorCode.SIGNING_KEY_UNSPECIFIED
    include_stack = False
    is_retriable = False


def check_signing_key(key: str | None, setting: str) -> None:
    """Refuse a key that is easy to guess, or malformed.

    ``setting`` is its name; ``None`` means that no key is set. A key with quotes or spaces around it would differ from
    the other side's key, and each call would be refused. Raises ``SigningKeyInvalidError``.
    """
    if key is None:
        return
    bare = strip_key_prefix(key).strip()
    if not bare or _BARE_PREFIX.fullmatch(bare):
        problem = "has nothing after its prefix" if key.strip() else "is empty"
        raise SigningKeyInvalidError(
            f"the signing key in {setting} {problem}, so anyone could sign with it: set the whole key "
            "(`durably keys` makes one), or leave it unset"
        )
    if not _VISIBLE.fullmatch(key) or key[0] in _QUOTES or key[-1] in _QUOTES:
        raise SigningKeyInvalidError(
            f"the signing key in {setting} has quotes around it, or contains spaces, line breaks or characters that "
            "are not ASCII: set the key alone"
        )


def is_short_signing_key(key: str | None) -> bool:
    """Whether a key is short enough to be guessed.

    The limit is 32 characters after its prefix (128 bits in hex).
    """
    return key is not None and len(strip_key_prefix(key).strip()) < _SECURE_KEY_LENGTH


def strip_key_prefix(key: str) -> str:
    return _PREFIX.sub("", key, count=1)


def sign(body: bytes, key: str, timestamp: int) -> str:
    """The header's value for ``body``, sent at ``timestamp`` (unix seconds)."""
    return f"t={timestamp}&s={_digest(body, key, timestamp)}"


def verify(body: bytes, header: str | None, keys: Iterable[str | None], now: float) -> str:
    """Check a signature over the body's bytes. Returns the key that made it.

    ``keys`` are tried in order, ``None`` is skipped; ``now`` is unix seconds. It costs no more than hashing the body.
    Raises ``SignatureMismatchError`` if the signature does not match the bytes, ``SignatureError`` if it is missing or
    malformed.
    """
    usable = [key for key in keys if key]
    if not usable:
        raise SignatureError(
            "cannot verify the signature: no signing key is set; give the client signing_key or set "
            "DURABLY_SIGNING_KEY",
            ErrorCode.SIGNING_KEY_UNSPECIFIED,
        )
    if not header:
        raise SignatureError("the x-inngest-signature header is missing", ErrorCode.HEADER_MISSING)
    timestamp, signature = parse_header(header)
    if abs(now - timestamp) > SIGNATURE_TOLERANCE.total_seconds():
        raise SignatureError("the signature is more than five minutes old or ahead; check both clocks")
    for key in usable:
        if hmac.compare_digest(_digest(body, key, timestamp), signature):
            return key
    raise SignatureMismatchError("the signature does not match any of the signing keys")


def parse_header(header: str) -> tuple[int, str]:
    """The timestamp (unix seconds) and the signature (64 lower-case hex digits).

    Any client may send this header, at any length, so it costs one bounded match. Raises ``SignatureError``.
    """
    match = _HEADER.fullmatch(header) if len(header) <= _MAX_HEADER_LENGTH else None
    if match is None:
        raise SignatureError("the x-inngest-signature header is malformed; it must be t=<seconds>&s=<hex>")
    return int(match[1]), match[2].lower()


def verify_canonical(body: bytes, header: str | None, keys: Iterable[str | None], now: float) -> tuple[str, bytes]:
    """``verify`` for a request whose body a platform may have re-encoded.

    The signature is over the body's RFC 8785 form. Returns the key and the canonical form, which is what was signed.
    The received body may contain other integers from 2**53 on, because these are rounded.

    Takes far longer than hashing, so do not call it on an event loop. Bodies above ``MAX_CANONICAL_BYTES`` are refused.
    Raises ``SignatureError``.
    """
    if len(body) > MAX_CANONICAL_BYTES:
        raise SignatureMismatchError(
            "the signature does not match any of the signing keys (a body that a proxy has re-encoded is "
            f"recognised up to {MAX_CANONICAL_BYTES} bytes, and this one has {len(body)})"
        )
    canonical = canonicalize(body)
    if canonical is None or canonical == body:
        raise SignatureMismatchError("the signature does not match any of the signing keys")
    return verify(canonical, header, keys, now), canonical


def canonicalize(body: bytes) -> bytes | None:
    """The body in RFC 8785 form, or ``None`` if it is not JSON."""
    try:
        return rfc8785.dumps(json.loads(body, parse_int=_parse_integer))
    except (ValueError, OverflowError, RecursionError):
        return None


def _parse_integer(text: str) -> int | float:
    """Parse an integer as RFC 8785 does: as a double.

    An integer that is not exactly a double was signed as the nearest double.
    """
    value = int(text)
    return value if abs(value) < _MAX_EXACT else float(value)


def hash_signing_key(key: str) -> str:
    """Hex SHA-256 of the hex-decoded key. Other keys are hashed as strings."""
    bare = strip_key_prefix(key)
    try:
        raw = bytes.fromhex(bare)
    except ValueError:
        raw = bare.encode()
    return hashlib.sha256(raw).hexdigest()


def hash_event_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def bearer_token(key: str) -> str:
    """The token in ``authorization: Bearer`` for a signing key.

    It is the key's prefix, then the hash of the rest.
    """
    bare = strip_key_prefix(key)
    return key[: len(key) - len(bare)] + hash_signing_key(key)


def _digest(body: bytes, key: str, timestamp: int) -> str:
    mac = hmac.new(strip_key_prefix(key).encode(), body, hashlib.sha256)
    mac.update(str(timestamp).encode())
    return mac.hexdigest()


_KEPT_SECONDS = 2 * int(SIGNATURE_TOLERANCE.total_seconds())
"""Longer than the validity of a signature, in case the clock is set back."""
_DIGITS = 16


class SentSignatures:
    """Signature headers of the last ten minutes.

    They are stored by the second in which they were made. Each takes eight bytes, the start of its HMAC. Thread-safe.
    """

    def __init__(self) -> None:
        self._by_second: dict[int, array[int]] = {}

    def add(self, header: str) -> None:
        """Raises ``SignatureError`` for a malformed header."""
        timestamp, signature = parse_header(header)
        made = self._by_second.get(timestamp)
        if made is None:
            self._forget(before=timestamp - _KEPT_SECONDS)
            made = self._by_second.setdefault(timestamp, array("Q"))
        made.append(int(signature[:_DIGITS], 16))

    def __contains__(self, header: str) -> bool:
        """Raises ``SignatureError`` for a malformed header."""
        timestamp, signature = parse_header(header)
        return int(signature[:_DIGITS], 16) in self._by_second.get(timestamp, ())

    def __len__(self) -> int:
        return sum(map(len, self._by_second.copy().values()))

    def _forget(self, before: int) -> None:
        for second in [second for second in self._by_second.copy() if second < before]:
            self._by_second.pop(second, None)


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
    """Check the signature with each key; ``None`` is skipped.

    Raises ``SignatureError``.
    """
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
        f"the {Header.ANSWER_SIGNATURE} header was not made with the engine's key for this status, these headers, this "
        "body and this call"
    )
