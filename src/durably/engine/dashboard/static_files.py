"""Style sheets and modules of the dashboard.

Their URLs have a hash of all of them, so that browsers may keep them, and modules may import each other.
"""

import hashlib
from functools import cache
from importlib.resources import files

from .messages import DashboardResponse

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
ASSETS = "/assets/"
"""The beginning of the files' paths. Apps and frameworks have files of their own below ``/static/``."""
_FOR_A_YEAR = "public, max-age=31536000, immutable"


@cache
def _contents() -> dict[str, bytes]:
    """The files by name."""
    found = (each for each in (files("durably.engine.dashboard") / "static").iterdir() if each.is_file())
    return {each.name: each.read_bytes() for each in sorted(found, key=lambda each: each.name)}


@cache
def version() -> str:
    """A hash of all files."""
    digest = hashlib.sha256()
    for name, content in _contents().items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def static_path(name: str) -> str:
    """The path of a file below the mount point.

    Raises ``KeyError`` if there is no such file.
    """
    _ = _contents()[name]
    return f"{ASSETS}{version()}/{name}"


def answer_static(name: str, requested_version: str) -> DashboardResponse | None:
    """A file; ``None`` if there is none.

    While versions are exchanged, a page may ask for another version: it gets the present one, which is not kept.
    """
    content = _contents().get(name)
    if content is None:
        return None
    caching = _FOR_A_YEAR if requested_version == version() else "no-store"
    kind = _TYPES["." + name.rpartition(".")[2]]
    return DashboardResponse(
        status_code=200, headers=[("content-type", kind), ("cache-control", caching)], body=content
    )
