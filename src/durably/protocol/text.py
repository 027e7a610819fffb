"""Makes untrusted text safe to show on a terminal, in a log line, or in an error.

Apps choose names, ids, errors and outputs. Unescaped, they could move a terminal's cursor, forge log lines, reverse
text, or contain the password of a URL. ``printable`` escapes invisible characters, ``redact_url`` removes secrets.
"""

import datetime as dt
import logging
import re
from collections.abc import Iterable
from urllib.parse import unquote_plus, urlsplit, urlunsplit

REDACTED = "***"

# Controls (C0, DEL, C1), bidirectional controls, line and paragraph separators, unpaired surrogates.
_IN_LINES = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(rf"[\t\n{_IN_LINES}]")
_UNSAFE_IN_LINES = re.compile(rf"[{_IN_LINES}]")
_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


TRUE_WORDS = ("1", "true", "yes", "on")
FALSE_WORDS = ("0", "false", "no", "off")


def parse_switch(text: str) -> bool | None:
    """The value of a setting that is on or off, in any case.

    ``None`` for any other word.
    """
    word = text.lower()
    if word in TRUE_WORDS:
        return True
    return False if word in FALSE_WORDS else None


def printable(value: object) -> str:
    """A value's string on one line.

    Invisible characters become escapes like ``\x1b`` and ``\n``.
    """
    return _UNSAFE.sub(_escape, str(value))


def is_name(value: object) -> bool:
    """Whether a value is a string that can be a name.

    It is not blank, and all of its characters are printable.
    """
    return isinstance(value, str) and bool(value.strip()) and printable(value) == value


def is_encodable(text: str) -> bool:
    """Whether UTF-8, and so JSON, can express the string.

    It cannot express half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable_lines(value: object) -> str:
    """A value's string as printable lines.

    Like ``printable``, for several lines, such as a traceback: line ends and tabs stay.
    """
    return _UNSAFE_IN_LINES.sub(_escape, str(value))


def keep_ends(text: str, most: int, omitted: str = "not shown") -> str:
    """The two ends of a string of more than ``most`` characters, with a note between."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters are {omitted} …\n{text[-half:]}"


def printable_json(encoded: str) -> str:
    """Equivalent JSON with only visible characters and line ends."""
    return _UNSAFE_IN_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", encoded)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return _SHORT.get(match[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


# URLs

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SECRET_WORDS = frozenset(
    [
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
    ]
)
_LONG_WORD = re.compile(r"[A-Za-z0-9_-]{20,}")
_USER = re.compile(r"[^\s/?#@&=]*:[^\s/?#@&=]*@")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")


def is_secret_name(name: str) -> bool:
    """Whether a name is that of a secret.

    Examples are ``Authorization``, ``x-api-key``, ``access_token``, ``apiKey`` and ``X-Amz-Signature``.
    """
    return any(word.lower() in _SECRET_WORDS for word in _WORD.findall(name))


def find_random_words(text: str) -> list[str]:
    """Long words that look random, and so may be tokens."""
    return [word for word in _LONG_WORD.findall(text) if _looks_random(word)]


def redact_url(url: object) -> str:
    """A URL, printable and without secrets.

    It has no user information, no fragment, and no secrets in its query and path. Random-looking parts of a path count
    as tokens, because webhooks of chat services have such URLs.
    """
    try:
        parts = urlsplit(str(url))
        _ = parts.port  # checks it
    except ValueError:
        return REDACTED  # no part of it is known to be safe
    host = parts.netloc.rpartition("@")[2]
    path = parts.path or ("/" if host else "")
    path = _LONG_WORD.sub(lambda word: REDACTED if _looks_random(word[0]) else word[0], path)
    query = "&".join(map(_redact_parameter, parts.query.split("&")))
    return printable(_USER.sub(f"{REDACTED}@", urlunsplit((parts.scheme, host, path, query, ""))))


def suggest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'shop-ship'?"`` for the nearest known id, or nothing.

    An id may lack its prefix.
    """
    import difflib  # not at each start: only errors suggest

    ids = sorted(known)
    nearest = [each for each in ids if each.endswith(f"-{name}")] or difflib.get_close_matches(name[:200], ids, 1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def show_url(text: str) -> str:
    """A string that should be a URL, for an error message.

    It is unchanged, unless it may contain a password.
    """
    return redact_url(text) if "@" in text else text


def redact_urls(text: object) -> str:
    """Untrusted text, printable and with each URL redacted."""
    return printable(_URL.sub(lambda match: redact_url(match[0]), str(text)))


def _redact_parameter(parameter: str) -> str:
    name, is_given, _ = parameter.partition("=")
    return f"{name}={REDACTED}" if is_given and is_secret_name(unquote_plus(name)) else parameter


def _looks_random(word: str) -> bool:
    return all(any(map(test, word)) for test in (str.islower, str.isupper, str.isdigit))


# logs

_HARMLESS = (int, float, list, dict, set, frozenset)
"""Types that format without raw strings: numbers, and containers that show items by ``repr``."""


class _Printable(logging.Filter):
    """Makes the arguments of a log line printable.

    The template stays the same, because tools group lines by it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and record.args:
            record.args = tuple(
                value if value is None or isinstance(value, _HARMLESS) else printable(value) for value in record.args
            )
        elif not record.args:
            record.msg = printable(record.msg)
        if record.exc_info and record.exc_text is None:
            record.exc_text = printable_lines(_formatter.formatException(record.exc_info))
        return True


_filter = _Printable()
_formatter = logging.Formatter()


def get_logger(name: str) -> logging.Logger:
    """A logger for lines that quote received text."""
    logger = logging.getLogger(name)
    logger.addFilter(_filter)  # once, even if it is requested several times
    return logger


def describe_os_error(error: OSError) -> str:
    """The reason without the address that the socket module adds to it."""
    return (error.strerror or str(error)).partition(" (")[0]


def reachable(host: str) -> str:
    """The host to connect to, for a host that a server listens on."""
    unspecified = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}
    return unspecified.get(host, f"[{host}]" if ":" in host else host)


UNITS = {
    "ns": dt.timedelta(microseconds=0.001),
    "us": dt.timedelta(microseconds=1),
    "µs": dt.timedelta(microseconds=1),
    "μs": dt.timedelta(microseconds=1),
    "ms": dt.timedelta(milliseconds=1),
    "s": dt.timedelta(seconds=1),
    "m": dt.timedelta(minutes=1),
    "h": dt.timedelta(hours=1),
    "d": dt.timedelta(days=1),
    "w": dt.timedelta(weeks=1),
}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d|w)", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)


def read_duration(text: str) -> dt.timedelta | None:
    """Read a sequence of ``<number><unit>``. ``None`` for any other string.

    Raises ``OverflowError``.
    """
    stripped = text.strip()
    if stripped == "0":
        return dt.timedelta(0)
    if not _WHOLE.fullmatch(stripped):
        return None
    return sum((float(n) * UNITS[unit] for n, unit in _PART.findall(stripped)), dt.timedelta(0))
