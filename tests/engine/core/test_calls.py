"""Calls to apps: bodies, answers and their signatures, and the times of retries."""

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from durably.engine.core.backoff import dev_backoff, standard_backoff, unreached_backoff
from durably.engine.core.calls import (
    AnswerVerification,
    AttemptFailed,
    CallData,
    ReportedOps,
    Returned,
    build_body,
    canonical_json,
    read_answer,
    to_sign,
)
from durably.engine.core.run_state import Call
from durably.protocol.signatures import SentSignatures, canonicalize, sign, sign_answer

numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
hashed_ids = st.text("0123456789abcdef", min_size=1, max_size=8)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(value=values, spaced=st.booleans(), escaped=st.booleans())
def test_as_the_reference_has_it(value: object, spaced: bool, escaped: bool) -> None:
    raw = json.dumps(value, indent=1 if spaced else None, ensure_ascii=escaped).encode()
    assert canonical_json(raw) == rfc8785.dumps(json.loads(raw))


def test_json_without_a_canonical_form_is_sorted() -> None:
    assert canonical_json(b'{"b": 1, "a": 12345678901234567890}') == b'{"a":12345678901234567890,"b":1}'


@given(memos=st.dictionaries(hashed_ids, values, max_size=6), event=st.dictionaries(texts, values, max_size=4))
def test_a_call_of_canonical_parts_is_canonical(memos: dict[str, Any], event: dict[str, Any]) -> None:
    data = CallData(
        run_id="01HR",
        function_id="app-é",
        call=Call(generation=3, due=5, attempt=1),
        max_attempts=5,
        disable_immediate=True,
        events=[canonical_json(json.dumps(event).encode())],
        memos=[(step_id, canonical_json(json.dumps(memo).encode())) for step_id, memo in memos.items()],
    )
    body = build_body(data)
    assert to_sign(body) == canonicalize(body)
    assert json.loads(body)["ctx"]["stack"]["stack"] == list(memos)
    assert canonicalize(json.dumps(json.loads(body)["event"]).encode()) == canonicalize(json.dumps(event).encode())


def test_large_integers_keep_their_digits_and_the_signature_is_the_canonical_forms() -> None:
    body = b'{"a":12345678901234567890}'
    assert canonical_json(body) == body
    assert to_sign(body) == b'{"a":12345678901234567000}'


NOW = 1_700_000_000
KEY, FALLBACK, OTHER = (f"signkey-test-{digits * 32}" for digits in ("ab", "cd", "ef"))
CALL = sign(b"the call", KEY, NOW)
SENT = SentSignatures()
SENT.add(CALL)
SDK = {"x-inngest-sdk": "py:v1", "x-inngest-req-version": "2"}


def check(*, signs_whole: bool = False, now: float = NOW) -> AnswerVerification:
    return AnswerVerification(
        keys=(KEY, FALLBACK), call_signature=CALL, signs_whole=signs_whole, now=now, was_sent=SENT.__contains__
    )


def signed(body: bytes, key: str = KEY, at: int = NOW, **headers: str) -> dict[str, str]:
    return SDK | {"x-inngest-signature": sign(body, key, at)} | {k.replace("_", "-"): v for k, v in headers.items()}


def whole(status: int, body: bytes, call: str = CALL, **headers: str) -> dict[str, str]:
    made = signed(body, **headers)
    return made | {"x-durably-signature": sign_answer(status, made, body, call_signature=call, key=KEY)}


def refused(verification: AnswerVerification, status: int, headers: dict[str, str], body: bytes) -> str:
    """The reason. A refused answer decides nothing, not even the time of the retry."""
    answer = read_answer(status, headers, body, NOW * 1000, verification.refuse)
    assert isinstance(answer, AttemptFailed)
    assert (answer.no_retry, answer.retry_at, answer.written) == (False, None, None)
    assert answer.error.name in ("AnswerNotSignedError", "AnswerSignatureError")
    return answer.error.message or ""


def accepted(verification: AnswerVerification, status: int, headers: dict[str, str], body: bytes) -> object:
    return read_answer(status, headers, body, NOW * 1000, verification.refuse)


@pytest.mark.parametrize("key", [KEY, FALLBACK])
def test_a_body_signed_with_either_key_is_used(key: str) -> None:
    assert accepted(check(), 200, signed(b"1", key), b"1") == Returned(b"1")


@pytest.mark.parametrize("headers", [SDK, {}, SDK | {"x-inngest-no-retry": "true", "retry-after": "3600"}])
@pytest.mark.parametrize("status", [200, 206, 500, 401])
def test_an_unsigned_answer_is_not_used(status: int, headers: dict[str, str]) -> None:
    assert "not signed" in refused(check(), status, headers, b"[]")


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, ["another signing key", "DURABLY_SIGNING_KEY"]),
        (200, SDK, ["production mode", "--unsigned-answers-of"]),
        (502, {}, ["something other than the app", "502", "nonsense"]),
        (500, SDK, ["the app answered with status 500"]),
    ],
)
def test_an_unsigned_answer_names_the_likely_reason(status: int, headers: dict[str, str], words: list[str]) -> None:
    message = refused(check(), status, headers, b"nonsense")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "headers",
    [
        signed(b"1", OTHER),
        signed(b"2"),
        signed(b"1", at=NOW - 301),
        signed(b"1", at=NOW + 301),
        SDK | {"x-inngest-signature": "t=1&s=no"},
    ],
)
def test_a_badly_signed_answer_is_not_used(headers: dict[str, str]) -> None:
    message = refused(check(), 200, headers, b"1")
    assert "signature" in message
    assert KEY[-32:] not in message


def test_the_whole_of_an_answer_is_checked_where_the_app_signs_it() -> None:
    error = json.dumps({"name": "E", "message": "boom"}).encode()
    headers = whole(500, error, x_inngest_no_retry="true")
    answer = accepted(check(signs_whole=True), 500, headers, error)
    assert isinstance(answer, AttemptFailed)
    assert (answer.error.message, answer.no_retry) == ("boom", True)


@pytest.mark.parametrize(
    ("status", "changed"),
    [
        (200, {}),
        (206, {}),
        (500, {"x-inngest-no-retry": "false"}),
        (500, {"retry-after": "3600"}),
        (500, {"x-inngest-req-version": "1"}),
        (500, {"x-inngest-sdk": "js:v4"}),
        (500, {"x-durably-signature": ""}),
        (500, {"x-durably-signature": "v1=" + "0" * 64}),
    ],
)
def test_a_changed_status_header_or_body_is_refused(status: int, changed: dict[str, str]) -> None:
    error = b'{"name": "E", "message": "boom"}'
    headers = whole(500, error, x_inngest_no_retry="true") | changed
    refused(check(signs_whole=True), status, headers, error)


@pytest.mark.parametrize("form", [str, lambda header: header.replace(header[-64:], header[-64:].upper())])
def test_signature_of_the_engine_itself_is_refused(form: Callable[[str], str]) -> None:
    message = refused(check(), 200, SDK | {"x-inngest-signature": form(CALL)}, b"the call")
    assert "request of the engine's own that was sent back" in message


@pytest.mark.parametrize("value", ["é", "\udcff", "a\nb", "\x00"])
@pytest.mark.parametrize("name", ["x-durably-signature", "x-inngest-signature", "retry-after", "x-inngest-sdk"])
def test_an_undecodable_header_is_one_clear_failed_attempt(name: str, value: str) -> None:
    signs_whole = name != "x-inngest-signature"
    message = refused(check(signs_whole=signs_whole), 200, whole(200, b"1") | {name: value}, b"1")
    assert name in message
    assert "TypeError" not in message


def test_an_app_that_signs_whole_answers_need_not_sign_their_bodies() -> None:
    """It does not if the body has the form of a request, because that signature would be valid for the request."""
    headers = whole(200, b"1")
    del headers["x-inngest-signature"]
    assert accepted(check(signs_whole=True), 200, headers, b"1") == Returned(b"1")
    assert "not signed" in refused(check(), 200, headers, b"1")


@pytest.mark.parametrize(("key", "is_used"), [(KEY, True), (FALLBACK, True), (OTHER, False)])
def test_a_whole_answer_may_be_signed_with_either_key(key: str, is_used: bool) -> None:
    headers = SDK | {"x-durably-signature": sign_answer(200, SDK, b"1", call_signature=CALL, key=key)}
    answer = accepted(check(signs_whole=True), 200, headers, b"1")
    assert (answer == Returned(b"1")) is is_used


def test_the_answer_of_another_call_is_not_used() -> None:
    headers = whole(200, b"1", call=sign(b"another call", KEY, NOW))
    assert "call" in refused(check(signs_whole=True), 200, headers, b"1")


def test_a_streamed_answer_is_checked_inside() -> None:
    def envelope(headers: dict[str, str]) -> bytes:
        return b"   " + json.dumps({"status": 200, "headers": headers, "body": "1"}).encode()

    for signs_whole, headers in ((True, whole(200, b"1")), (False, signed(b"1"))):
        verification = check(signs_whole=signs_whole)
        assert accepted(verification, 201, SDK, envelope(headers)) == Returned(b"1")
    assert "does not sign streamed answers" in refused(check(), 201, SDK, envelope(SDK))
    refused(check(signs_whole=True), 201, SDK | {"retry-after": "9"}, envelope(whole(200, b"1")))


NEW_YEAR = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def test_delays_are_those_of_the_protocol() -> None:
    delays = [standard_backoff(attempt, 0).total_seconds() for attempt in range(12)]
    assert delays == [15, 30, 60, 120, 300, 600, 1200, 2400, 3600, 7200, 7200, 7200]
    assert standard_backoff(0, 1) == dt.timedelta(seconds=45)


def test_delays_grow_and_are_bounded() -> None:
    for backoff, most in ((dev_backoff, 33), (unreached_backoff, 12.5)):
        delays = [backoff(attempt, 0) for attempt in range(30)]
        assert delays == sorted(delays)
        assert all(dt.timedelta(0) < backoff(attempt, 1) <= dt.timedelta(seconds=most) for attempt in range(100))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("30", 30),
        ("0", 1),
        ("90000", 86400),
        ("2026-01-01T00:01:00Z", 60),
        ("Thu, 01 Jan 2026 00:02:00 GMT", 120),
        ("2020-01-01T00:00:00Z", 1),
        ("whenever", None),
    ],
)
def test_retry_after_is_read_and_clipped(header: str, seconds: int | None) -> None:
    answer = read_answer(
        206, {"x-inngest-sdk": "py:v1", "retry-after": header}, b"[]", round(NEW_YEAR.timestamp() * 1000)
    )
    assert isinstance(answer, ReportedOps)
    expected = None if seconds is None else round((NEW_YEAR.timestamp() + seconds) * 1000)
    assert answer.retry_at == expected
