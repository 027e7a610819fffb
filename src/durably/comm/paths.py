"""The path of an app's endpoint, and the URL at which engines reach it."""

from urllib.parse import urlsplit, urlunsplit

from durably.errors import URLInvalidError
from durably.protocol.text import redact_url
from durably.settings import DEFAULT_SERVE_PATH, Environment, check_serve_path, parse_url


def mount_path(serve_path: str | None) -> str:
    """The path of the endpoint, with its leading slash: the argument, ``DURABLY_SERVE_PATH``, or the default.

    Raises ``FunctionConfigInvalidError``.
    """
    return with_slash(read_path(serve_path, "serve_path") or Environment().serve_path or DEFAULT_SERVE_PATH)


def read_path(path: str | None, argument: str) -> str | None:
    """An argument that is a path. Raises ``FunctionConfigInvalidError``."""
    return check_serve_path(path, argument) if path else None


def with_slash(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"


def read_origin(text: str, what: str) -> tuple[str, str]:
    """Scheme and network location of a URL.

    Raises ``URLInvalidError``, which names ``what``.
    """
    parts = urlsplit(parse_url(text, what))
    return parts.scheme, parts.netloc


def read_serve_origin(text: str, what: str) -> tuple[str, str]:
    """Scheme and network location of an origin, which has no path.

    Raises ``URLInvalidError``, which names ``what``.
    """
    origin = read_origin(text, what)
    parts = urlsplit(parse_url(text, what))
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise URLInvalidError(
            f"{what} is {redact_url(urlunsplit(parts))!r}, which is more than an origin: write only its scheme and "
            "host, and the rest in serve_path (DURABLY_SERVE_PATH) or, behind a proxy that rewrites paths, public_path"
        )
    return origin
