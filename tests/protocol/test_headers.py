"""Requests of pages of other sites, by the headers of browsers."""

import pytest

from durably.protocol.headers import is_of_another_site

HOST = {"host": "app.example.com"}


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": "https://app.example.com"},
        {"origin": "https://evil.example.com"},
        {"origin": "null"},
        {"origin": "https://app.example.com:8443"},
        {"origin": "https://app.example.com.evil.example.com"},
    ],
    ids=str,
)
def test_a_request_of_another_site(headers: dict[str, str]) -> None:
    assert is_of_another_site({**HOST, **headers})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin", "origin": "null"},
        {"sec-fetch-site": "none"},
        {"origin": "https://app.example.com"},
        {"origin": "https://APP.example.com"},
        {"origin": "https://public.example.com", "x-forwarded-host": "other.example.com, public.example.com"},
    ],
    ids=str,
)
def test_a_request_of_the_same_site(headers: dict[str, str]) -> None:
    assert not is_of_another_site({**HOST, **headers})
