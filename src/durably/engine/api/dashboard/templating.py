"""Templates of the pages, their filters, and their style sheets and modules.

URLs of style sheets and modules have a hash of all of them, so that browsers may keep them, and modules may import
each other.
"""

import datetime as dt
import hashlib
import shlex
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import jinja2
import msgspec

from durably.protocol.text import keep_ends, printable, printable_lines, redact_url

from . import formats
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
    found = (each for each in (files("durably.engine.api.dashboard") / "static").iterdir() if each.is_file())
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


class NavigationEntry(msgspec.Struct, frozen=True):
    """A page of the first level, which needs an operation of the engine.

    ``key`` is the letter that opens it after ``g``.
    """

    title: str
    path: str
    key: str
    needs: str


NAVIGATION = (
    NavigationEntry("Overview", "/", "o", "overview"),
    NavigationEntry("Runs", "/runs", "r", "search_runs"),
    NavigationEntry("Questions", "/questions", "q", "list_questions"),
    NavigationEntry("Functions", "/functions", "f", "list_functions"),
    NavigationEntry("Events", "/events", "e", "search_events"),
    NavigationEntry("Apps", "/apps", "a", "list_apps"),
    NavigationEntry("Cron", "/cron", "c", "list_schedules"),
)


_MOST_ERROR_TEXT = 16 * 1024
"""Characters of an error's message, and of its traceback, on a page. The run's output has all."""


def _error_text(text: str) -> str:
    return printable_lines(keep_ends(text, _MOST_ERROR_TEXT))


@cache
def environment() -> jinja2.Environment:
    """The environment. An undefined name in a template is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("durably.engine.api.dashboard"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "count": formats.format_count,
        "duration": formats.format_duration,
        "exact": formats.format_exact,
        "iso": formats.format_iso,
        "lines": printable_lines,
        "error_text": _error_text,
        "parts": formats.split_run_ids,
        "redacted": redact_url,
        "segment": lambda text: quote(text, safe=""),
        "short_id": formats.short_id,
        "shell_word": shlex.quote,
        "shown": printable,
        "size": formats.format_size,
        "utc": formats.format_utc,
    }
    made.globals |= {
        "navigation": NAVIGATION,
        "share": formats.format_share,
        "static_path": static_path,
        "zip": zip,
    }
    return made


def render(template: str, values: dict[str, Any]) -> bytes:
    """The page in UTF-8.

    Halves of surrogate pairs, which JSON may contain, become question marks.
    """
    now = dt.datetime.now(dt.UTC)
    return environment().get_template(template).render(now=now, **values).encode(errors="replace")
