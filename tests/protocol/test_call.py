"""The limit for arrays and objects inside of each other, which is the same on every version of Python."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durably.protocol.call import TooDeepError, check_nesting, decode

JSON = st.recursive(
    st.integers() | st.text('[]{}"\\aé'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[}"\\a'), inner, max_size=3),
    max_leaves=20,
)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(JSON, st.booleans())
def test_brackets_in_texts_do_not_count(value: object, is_ascii: bool) -> None:
    body = json.dumps(value, ensure_ascii=is_ascii).encode()
    depth = depth_of(value)
    check_nesting(body, depth)
    if depth:
        with pytest.raises(TooDeepError, match="at most 200 levels"):
            check_nesting(body, depth - 1)


@pytest.mark.parametrize("body", [b"[" * 1_000, b'["' + b"[" * 1_000, b"]" * 1_000 + b"[" * 500, b'[[[[]]]]"' * 1_000])
def test_malformed_json_is_checked_or_left_to_the_decoder(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(msgspec.json.Decoder(), body)
