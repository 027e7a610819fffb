"""What of a request is secret, and how to show it without.

Told by name: headers, query parameters and options whose names speak of keys, tokens, passwords and the like, and
the user information in a URL. Shows too little rather than too much.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from yarl import URL

REDACTED = "***"
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SECRET_WORDS = frozenset(
    {
        "accesskey",
        "accesstoken",
        "apikey",
        "auth",
        "authentication",
        "authorization",
        "authtoken",
        "bearer",
        "clientsecret",
        "cookie",
        "cookies",
        "credential",
        "credentials",
        "jwt",
        "key",
        "pass",
        "passphrase",
        "passwd",
        "password",
        "privatekey",
        "pwd",
        "refreshtoken",
        "secret",
        "secretkey",
        "secrets",
        "session",
        "sessionid",
        "sid",
        "sig",
        "signature",
        "token",
        "tokens",
    }
)
_LONG_WORD = re.compile(r"[A-Za-z0-9_-]{20,}")
_SHORTEST_SECRET = 4
"""Characters; scrubbing shorter ones would garble texts and hide nothing."""


def is_secret_name(name: str) -> bool:
    """``Authorization``, ``x-api-key``, ``access_token``, ``apiKey``, ``X-Amz-Signature`` …"""
    return any(word.lower() in _SECRET_WORDS for word in _WORD.findall(name))


def redact_url(text: object) -> str:
    """The URL without its user information, its fragment, and what is secret in its query and path.

    In a path, what looks random is taken for a token: webhooks of chats are addressed so.
    """
    try:
        url = URL(str(text)).with_fragment(None)
        if url.raw_user or url.raw_password:
            url = url.with_user(None)
        query = [(name, REDACTED if is_secret_name(name) else value) for name, value in url.query.items()]
        path = _LONG_WORD.sub(lambda word: REDACTED if _looks_random(word[0]) else word[0], url.raw_path)
        return str(url.with_path(path, encoded=True).with_query(query or None))
    except ValueError:
        return REDACTED  # no part of it is known to be harmless


def _looks_random(word: str) -> bool:
    return all(any(map(test, word)) for test in (str.islower, str.isupper, str.isdigit))


def redact(opts: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a ``Gateway`` or ``AIGateway`` op as they may be stored and shown.

    Values of secret headers and options and the secret parts of the URL become ``***``; the body stays.
    """
    return {name: _redact_option(name, value) for name, value in opts.items()}


def _redact_option(name: str, value: Any) -> Any:
    if name == "headers" and isinstance(value, Mapping):
        return {header: REDACTED if is_secret_name(str(header)) else text for header, text in value.items()}
    if name == "url":
        return redact_url(value)
    return REDACTED if value is not None and is_secret_name(name) else value


def find_secrets(opts: Mapping[str, Any]) -> list[str]:
    """The texts of a request that must not be shown, longest first."""
    found: set[str] = set()
    headers = opts.get("headers")
    named = [*opts.items(), *(headers.items() if isinstance(headers, Mapping) else ())]
    try:
        url = URL(str(opts.get("url", "")))
        named += url.query.items()
        found.update(text for text in (url.password, url.raw_password) if text)
        found.update(filter(_looks_random, _LONG_WORD.findall(url.raw_path)))
    except ValueError:
        pass
    for name, value in named:
        if isinstance(value, str) and is_secret_name(str(name)):
            found |= {value, *value.split()}  # "Bearer abc" is secret, and so is "abc"
    return sorted((text for text in found if len(text) >= _SHORTEST_SECRET), key=len, reverse=True)


def scrub(text: str, secrets: Iterable[str]) -> str:
    """The text without those secrets, for what a server says: some repeat what they were sent."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return text
