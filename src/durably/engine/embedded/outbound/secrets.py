"""What of a request is secret, and how to show it without.

Told by name: headers, query parameters and options whose names speak of keys, tokens, passwords and the like, and
the user information in a URL. Shows too little rather than too much.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from yarl import URL

from durably.protocol.text import REDACTED, find_random_words, is_secret_name, redact_url

_SHORTEST_SECRET = 4
"""Characters; scrubbing shorter ones would garble texts and hide nothing."""


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
        found.update(find_random_words(url.raw_path))
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
