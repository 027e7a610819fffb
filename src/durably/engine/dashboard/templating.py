"""Templates of the pages.

The environment of Jinja2, with the functions that templates call.
"""

import datetime as dt
import shlex
from functools import cache
from typing import Any
from urllib.parse import quote

import jinja2
import msgspec

from durably.protocol.text import keep_ends, printable, printable_lines, redact_url

from .rendering import formats
from .static_files import static_path


class NavigationEntry(msgspec.Struct, frozen=True):
    """A page of the first level. ``key`` is the letter that opens it after ``g``."""

    title: str
    path: str
    key: str


NAVIGATION = (
    NavigationEntry("Overview", "/", "o"),
    NavigationEntry("Runs", "/runs", "r"),
    NavigationEntry("Functions", "/functions", "f"),
    NavigationEntry("Events", "/events", "e"),
    NavigationEntry("Apps", "/apps", "a"),
    NavigationEntry("Cron", "/cron", "c"),
)


_MOST_ERROR_TEXT = 16 * 1024
"""Characters of an error's message, and of its traceback, on a page. The run's output has all."""


def _error_text(text: str) -> str:
    return printable_lines(keep_ends(text, _MOST_ERROR_TEXT))


@cache
def environment() -> jinja2.Environment:
    """The environment. An undefined name in a template is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("durably.engine.dashboard"),
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
