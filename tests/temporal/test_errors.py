"""Messages of failures name the error, and contain no credentials."""

import pytest

from durably.temporal.errors import MAXIMUM, scrub


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("login failed: password=hunter2, user=ada", "login failed: password=***, user=ada"),
        ('{"password": "two words", "n": 1}', '{"password": ***, "n": 1}'),
        (r'{"password": "a\"b", "n": 1}', '{"password": ***, "n": 1}'),
        ("{'api_key': 'abc def', 'n': 1}", "{'api_key': ***, 'n': 1}"),
        ("aws_secret_access_key = abcd/efg", "aws_secret_access_key = ***"),
        ("DB_PASSWORD1=x and sessionid=y", "DB_PASSWORD1=*** and sessionid=***"),
        ("AccountKey=abc==;EndpointSuffix=core", "AccountKey=***;EndpointSuffix=core"),
        ("GET https://h/p?token=abc&n=1", "GET https://h/p?token=***&n=1"),
        ("GET https://h/p?sig=abc&X-Amz-Signature=def", "GET https://h/p?sig=***&X-Amz-Signature=***"),
        ("postgres://ada:pass@db/shop is away", "postgres://***@db/shop is away"),
        ("https://a-token@github.com/x", "https://***@github.com/x"),
        ("Authorization: Token abcdef, Accept: x", "Authorization: ***, Accept: x"),
        ("{'authorization': 'Bearer abcdef', 'n': 1}", "{'authorization': '***', 'n': 1}"),
        ("sent bearer abcdefghijkl", "sent bearer ***"),
        ("Cookie: a=b; c=d\nHost: h", "Cookie: ***\nHost: h"),
        ("the token eyJhbGciOi.eyJzdWIi.ab-12 is expired", "the token *** is expired"),
        ("the key AKIAIOSFODNN7EXAMPLE is unknown", "the key *** is unknown"),
        ("no such customer for sk_live_51abcdefghijk", "no such customer for ***"),
        ("bad key: -----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----!", "bad key: ***!"),
        ("bad key: -----BEGIN PRIVATE KEY-----\nMIIE", "bad key: ***"),
    ],
)
def test_credentials_are_left_out(text: str, shown: str) -> None:
    assert scrub(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "the card was declined: insufficient funds",
        "passwordless login is off",
        "three tokens: too many",
        "order-123 of ada@example.com at https://example.com/a?b=c#d: 404",
        "mask-ed, task-queue, risk_live",
    ],
)
def test_other_text_is_unchanged(text: str) -> None:
    assert scrub(text) == text


@pytest.mark.parametrize(
    "piece", ["a", "a-", "password", "password='", "token: ", "://", "://a:", "eyJ-", "sk-", "cookie:", "-----BEGIN "]
)
def test_long_failures_are_scrubbed_quickly(piece: str) -> None:
    """With a pattern that begins with a repetition this would take hours."""
    assert scrub(piece * (300_000 // len(piece)))


def test_long_text_is_truncated_with_the_number_of_omitted_characters() -> None:
    """The secret is hidden even if only its beginning is left."""
    start = "x" * (MAXIMUM - 20)
    shown = scrub(f"{start} password={'s' * 100}")
    assert shown == f"{start} password=***… (90 more characters)"
    assert len(scrub("token_" * 300_000)) < MAXIMUM + 50
    assert scrub("x" * MAXIMUM) == "x" * MAXIMUM
