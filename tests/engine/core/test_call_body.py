"""Canonical JSON, as the reference implementation has it."""

import json
from typing import Any

import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from durably.engine.core.calls import CallData, build_body, canonical_json, to_sign
from durably.engine.core.run_state import Call
from durably.protocol.signatures import canonicalize

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
