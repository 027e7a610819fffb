"""The path of an app's endpoint, and the URL at which engines reach it."""

from urllib.parse import urlsplit

from durably.errors import URLInvalidError
from durably.protocol.text import show_url
from durably.settings import DEFAULT_SERVE_PATH, Environment


def mount_path(serve_path: str | None) -> str:
    """The path of the endpoint, with its leading slash: the argument, ``DURABLY_SERVE_PATH``, or the default."""
    return with_slash(serve_path or Environment().serve_path or DEFAULT_SERVE_PATH)


def with_slash(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"


def read_origin(text: str, what: str) -> tuple[str, str]:
    """Scheme and network location of an origin or URL; a missing scheme is https.

    Raises ``URLInvalidError``, which names ``what``.
    """
    url = text if "://" in text else f"https://{text}"
    if not _is_http_url(url):
        raise URLInvalidError(f"{what} is not a valid URL: {show_url(text)!r}; write it like https://app.example.com")
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:  # an unclosed bracket, or a port that is not a number
        return False
    return has_host and parts.scheme in ("http", "https") and parts.netloc.isprintable() and " " not in parts.netloc
