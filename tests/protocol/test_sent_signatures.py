"""Recognising one's own signatures."""

import pytest

from durably.protocol.signatures import SentSignatures, SignatureError, sign

NOW = 1_700_000_000
KEY = "signkey-test-" + "ab" * 32


def header(n: int, at: int = NOW) -> str:
    return sign(b"%d" % n, KEY, at)


def test_a_signature_that_was_sent_is_recognised_in_each_of_its_spellings() -> None:
    sent = SentSignatures()
    for n in range(100):
        sent.add(header(n))
    assert all(header(n) in sent for n in range(100))
    assert header(1).replace("t=", "t=0") in sent
    timestamp, _, digits = header(1).partition("&s=")
    assert f"{timestamp}&s={digits.upper()}" in sent
    assert header(100) not in sent
    assert header(1, NOW + 1) not in sent


def test_signature_is_forgotten_when_it_has_expired() -> None:
    sent = SentSignatures()
    for second in range(3000):
        sent.add(header(second, NOW + second))
    assert header(2500, NOW + 2500) in sent
    assert header(2000, NOW + 2000) not in sent
    assert len(sent) <= 602


def test_other_headers_are_malformed() -> None:
    with pytest.raises(SignatureError, match="malformed"):
        assert "t=1" in SentSignatures()
