"""Where apps are mounted."""

from durably.settings import DEFAULT_SERVE_PATH, Environment


def mount_path(serve_path: str | None) -> str:
    """The path of the endpoint, with its leading slash: the argument, ``DURABLY_SERVE_PATH``, or the default."""
    path = serve_path or Environment().serve_path or DEFAULT_SERVE_PATH
    return path if path.startswith("/") else f"/{path}"
