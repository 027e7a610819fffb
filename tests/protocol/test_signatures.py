"""Signatures, and the bearer token."""

import hashlib
import json
import time
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from durably.protocol import signatures
from durably.protocol.errors import ErrorCode
from durably.protocol.limits import MAX_CANONICAL_BYTES
from durably.protocol.signatures import (
    SentSignatures,
    SignatureError,
    SignatureMismatchError,
    SigningKeyInvalidError,
    bearer_token,
    canonicalize,
    check_signing_key,
    hash_signing_key,
    sign,
    strip_key_prefix,
    verify,
    verify_canonical,
)

NOW = 1_700_000_000
KEY = "signkey-prod-" + "ab" * 32
OTHER = "signkey-prod-" + "cd" * 32

KEYS = st.text("0123456789abcdef", min_size=2, max_size=64).map(lambda bare: f"signkey-test-{bare}")
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=15,
)


@given(st.binary(), KEYS, st.integers(-300, 300))
def test_signed_body_is_verified(body: bytes, key: str, seconds: int) -> None:
    assert verify(body, sign(body, key, NOW), [None, key], NOW + seconds) == key


@given(st.binary(), st.binary(), KEYS)
def test_another_body_is_not(body: bytes, other: bytes, key: str) -> None:
    assume(body != other and canonicalize(other) != body)
    with pytest.raises(SignatureError):
        verify(other, sign(body, key, NOW), [key], NOW)


@given(st.binary(), KEYS, KEYS)
def test_nor_is_another_key(body: bytes, key: str, other: str) -> None:
    assume(strip_key_prefix(key) != strip_key_prefix(other))
    with pytest.raises(SignatureError) as raised:
        verify(body, sign(body, other, NOW), [key], NOW)
    assert strip_key_prefix(key) not in str(raised.value) or len(strip_key_prefix(key)) < 8


@given(st.integers(301, 10**9) | st.integers(-(10**9), -301))
def test_nor_is_another_time(seconds: int) -> None:
    with pytest.raises(SignatureError, match="five minutes"):
        verify(b"", sign(b"", KEY, NOW), [KEY], NOW + seconds)


@given(st.text())
def test_no_header_whatever_gets_through_or_breaks_anything(header: str) -> None:
    with pytest.raises(SignatureError):
        verify(b"body", header, [KEY, OTHER], NOW)


@given(JSON)
def test_signature_of_a_reencoded_body_is_valid(value: object) -> None:
    canonical = canonicalize(json.dumps(value).encode())
    assert canonical is not None
    reencoded = json.dumps(value, indent=2, sort_keys=False).encode()
    signature = sign(canonical, KEY, NOW)
    if reencoded == canonical:
        assert verify(reencoded, signature, [KEY], NOW) == KEY
    else:
        assert verify_canonical(reencoded, signature, [KEY], NOW) == (KEY, canonical)


def test_only_small_bodies_are_made_canonical(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes thousands of times as long as hashing."""
    made: list[int] = []
    monkeypatch.setattr(signatures, "canonicalize", lambda body: made.append(len(body)))
    for size in (MAX_CANONICAL_BYTES, MAX_CANONICAL_BYTES + 1):
        with pytest.raises(SignatureMismatchError):
            verify(b"1" * size, sign(b"", KEY, NOW), [KEY], NOW)
        with pytest.raises(SignatureMismatchError):
            verify_canonical(b"1" * size, sign(b"", KEY, NOW), [KEY], NOW)
    assert made == [MAX_CANONICAL_BYTES]


@given(JSON)
def test_canonical_json_says_the_same_and_is_its_own_form(value: object) -> None:
    canonical = canonicalize(json.dumps(value).encode())
    assert canonical is not None
    assert json.loads(canonical, parse_int=float) == json.loads(json.dumps(value), parse_int=float)
    assert canonicalize(canonical) == canonical


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("[9007199254740991, 9007199254740993, 1e21, 1.0, -0.0]", b"[9007199254740991,9007199254740992,1e+21,1,0]"),
        ('{"b": 1, "a": "\\u20ac\\u000a"}', '{"a":"€\\n","b":1}'.encode()),
        ("1" * 400, None),
        ("NaN", None),
        ("[" * 100_000, None),
    ],
)
def test_canonical_json_equals_the_examples(text: str, canonical: bytes | None) -> None:
    assert canonicalize(text.encode()) == canonical


@given(st.binary())
def test_any_bytes_have_no_canonical_form_or_an_equal_one(body: bytes) -> None:
    canonical = canonicalize(body)
    if canonical is not None:
        assert json.loads(canonical, parse_int=float) == json.loads(body, parse_int=float)


def test_the_key_that_signed_is_returned() -> None:
    for key in (KEY, OTHER):
        assert verify(b"x", sign(b"x", key, NOW), [KEY, OTHER], NOW) == key


@pytest.mark.parametrize(
    ("header", "keys", "code"),
    [
        (None, [KEY], ErrorCode.HEADER_MISSING),
        ("", [KEY], ErrorCode.HEADER_MISSING),
        (sign(b"", KEY, NOW), [None, None], ErrorCode.SIGNING_KEY_UNSPECIFIED),
        (sign(b"", KEY, NOW), [], ErrorCode.SIGNING_KEY_UNSPECIFIED),
        ("t=now&s=xyz", [KEY], ErrorCode.SIG_VERIFICATION_FAILED),
    ],
)
def test_error_names_the_fault_of_a_signature(header: str | None, keys: list[str | None], code: ErrorCode) -> None:
    with pytest.raises(SignatureError) as raised:
        verify(b"", header, keys, NOW)
    assert raised.value.code is code


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header + "&a=1",
        lambda header: "a=1&" + header,
        lambda header: "&".join(reversed(header.split("&"))),
        lambda header: header + "&" + header,
        lambda header: header + "\n",
        lambda header: header.replace("t=", "t=%31"),
        lambda header: header.replace("t=1", "t=\u0661"),
        lambda header: header.replace("=", " = "),
    ],
)
def test_a_signature_header_has_one_form(change: Callable[[str], str]) -> None:
    with pytest.raises(SignatureError, match="malformed"):
        verify(b"", change(sign(b"", KEY, NOW)), [KEY], NOW)


@pytest.mark.parametrize("header", ["a=%41&" * 666_666, sign(b"", KEY, NOW) + "&a=%41" * 666_666, "t=" + "1" * 10**7])
def test_a_huge_signature_header_costs_nothing(header: str) -> None:
    began = time.thread_time()
    with pytest.raises(SignatureError, match="malformed"):
        verify(b"", header, [KEY], NOW)
    assert time.thread_time() - began < 0.05


@pytest.mark.parametrize(
    "key", ["", " ", "signkey", "signkey-", "signkey-prod", "signkey-prod-", "signkey-prod- ", "signkey-a-signkey-b-"]
)
def test_a_key_that_is_only_a_prefix_is_refused_by_the_name_of_its_setting(key: str) -> None:
    with pytest.raises(SigningKeyInvalidError, match=r"Client\(signing_key"):
        check_signing_key(key, "Client(signing_key=…)")


@pytest.mark.parametrize("key", [None, KEY, "ab", "secret", "signkey-test-0"])
def test_other_keys_are_accepted(key: str | None) -> None:
    check_signing_key(key, "DURABLY_SIGNING_KEY")


def test_the_bearer_token_keeps_the_prefix_and_hashes_the_rest() -> None:
    # The example of the specification.
    hashed = "b2ed992186a5cb19f6668aade821f502c1d00970dfd0e35128d51bac4649916c"
    assert bearer_token("signkey-prod-12345678") == f"signkey-prod-{hashed}"
    assert bearer_token("12345678") == hashed


def test_non_hex_key_is_hashed_as_text() -> None:
    assert hash_signing_key("signkey-branch-zebra") == hashlib.sha256(b"zebra").hexdigest()


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1), st.text("0123456789abcdef", min_size=1))
def test_prefix_of_a_key_is_removed(environment: str, bare: str) -> None:
    assert strip_key_prefix(f"signkey-{environment}-{bare}") == bare
    assert strip_key_prefix(bare) == bare


def header_of(n: int, at: int = NOW) -> str:
    return sign(b"%d" % n, KEY, at)


def test_a_signature_that_was_sent_is_recognised_in_each_of_its_spellings() -> None:
    sent = SentSignatures()
    for n in range(100):
        sent.add(header_of(n))
    assert all(header_of(n) in sent for n in range(100))
    assert header_of(1).replace("t=", "t=0") in sent
    timestamp, _, digits = header_of(1).partition("&s=")
    assert f"{timestamp}&s={digits.upper()}" in sent
    assert header_of(100) not in sent
    assert header_of(1, NOW + 1) not in sent


def test_signature_is_forgotten_when_it_has_expired() -> None:
    sent = SentSignatures()
    for second in range(3000):
        sent.add(header_of(second, NOW + second))
    assert header_of(2500, NOW + 2500) in sent
    assert header_of(2000, NOW + 2000) not in sent
    assert len(sent) <= 602


def test_other_headers_are_malformed() -> None:
    with pytest.raises(SignatureError, match="malformed"):
        assert "t=1" in SentSignatures()
