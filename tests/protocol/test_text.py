"""Untrusted text is shown without control characters, and URLs without credentials."""

import io
import json
import logging
import re
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from durably.comm.serve_options import read_origin
from durably.errors import URLInvalidError
from durably.protocol.text import (
    get_logger,
    keep_ends,
    printable,
    printable_json,
    printable_lines,
    redact_url,
    redact_urls,
    show_url,
)

UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
SECRET = "s3cretPassword0fTheApp"

hostile = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("\x1b\x07\x00\r\n\t\x7f\x9b\x85\u2028\u202e\u2066\ud800"),
        st.sampled_from("[]31m;"),
    ),
    max_size=40,
)


@given(hostile)
@example("\x1b]0;title\x07\x1b[2J\r\nforged line \u202e\x9b31m")
def test_one_line_and_nothing_invisible(text: str) -> None:
    assert not UNSAFE.search(printable(text))
    assert "\n" not in printable(text)
    assert not UNSAFE.search(printable_lines(text).replace("\t", ""))
    assert printable_lines(text).count("\n") == text.count("\n")


@given(hostile)
def test_json_keeps_its_meaning(text: str) -> None:
    encoded = json.dumps({"text": text}, ensure_ascii=False, indent=2)
    assert not UNSAFE.search(printable_json(encoded))
    assert json.loads(printable_json(encoded)) == {"text": text}


def test_printable_text_is_unchanged() -> None:
    for text in ("shop-fulfil order #1", "Größe · 数量 · 🎉", "C:\\new"):
        assert printable(text) == text
    assert printable("a\tb\r\n\x1b\u202e") == r"a\tb\r\n\x1b\u202e"


@given(st.sampled_from(["https", "http"]), st.text(max_size=10), hostile)
def test_no_password_of_a_url_is_shown(scheme: str, user: str, path: str) -> None:
    url = f"{scheme}://{quote(user)}:{SECRET}@shop.example/{path}"
    for shown in (redact_url(url), redact_urls(f"cannot reach {url}, or so")):
        assert SECRET not in shown
        assert not UNSAFE.search(shown)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:pw@host:80/a?x=1#f", "http://host:80/a?x=1"),
        ("http://host/api?token=abc&x=1&X-Amz-Signature=s", "http://host/api?token=***&x=1&X-Amz-Signature=***"),
        ("http://host/api?api%5Fkey=abc", "http://host/api?api%5Fkey=***"),
        ("me:pw@host/a", "***@host/a"),
        ("http:/me:pw@host/a", "http:///***@host/a"),
        ("http://host:pw/a", "***"),
        ("http://[::1", "***"),
        ("http://[::1]:8288/", "http://[::1]:8288/"),
    ],
)
def test_urls_are_shown_without_credentials(url: str, shown: str) -> None:
    assert redact_url(url) == shown


class Fault(Exception):
    pass


@given(hostile)
def test_log_lines_are_one_line_each(text: str) -> None:
    stream = io.StringIO()
    logger = get_logger("durably.test_text")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    logger.propagate = False
    logger.warning("run of %s: %s (%d, %r)", text, Fault(text), 3, text)
    logger.warning(text)
    logger.removeHandler(handler)
    assert stream.getvalue().count("\n") == 2
    assert not UNSAFE.search(stream.getvalue())


def test_tracebacks_keep_their_lines_and_nothing_else() -> None:
    stream = io.StringIO()
    logger = get_logger("durably.test_text")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        raise Fault("\x1b[2Jgone")
    except Fault:
        logger.exception("failed")
    logger.removeHandler(handler)
    assert "Traceback" in stream.getvalue()
    assert r"\x1b[2Jgone" in stream.getvalue()
    assert not UNSAFE.search(stream.getvalue())


def test_non_url_is_shown_unless_it_may_have_a_password() -> None:
    assert show_url("htp:/shop") == "htp:/shop"
    assert SECRET not in show_url(f"https://me:{SECRET}@shop:port")
    with pytest.raises(URLInvalidError) as caught:
        read_origin(f"https://me:{SECRET}@shop:port", "DURABLY_SERVE_ORIGIN")
    assert SECRET not in str(caught.value)


def test_the_ends_of_a_long_text_are_kept() -> None:
    assert keep_ends("short", 5) == "short"
    assert keep_ends("abcdef" + "x" * 100, 6) == "abc\n… 100 characters are not shown …\nxxx"
