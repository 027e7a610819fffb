"""Ways to find the engine of a dashboard, for the commands that its pages show."""

import shlex
from collections.abc import Callable

import msgspec

from durably.protocol.api import DEFAULT_PORT
from durably.protocol.text import redact_url

from .messages import DashboardRequest

_DEFAULT_ORIGINS = (f"http://127.0.0.1:{DEFAULT_PORT}", f"http://localhost:{DEFAULT_PORT}")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The options and variables that find an engine.

    ``option`` is that of the command line, with a space before it; ``""`` if the default finds the engine, ``None`` if
    no command can. ``variable`` is for the environment of apps; ``None`` if the engine runs in an app's own processes.
    ``needs_keys``: both need the engine's keys in their environment, too.
    """

    option: str | None = None
    variable: str | None = None
    needs_keys: bool = False


FindingOf = Callable[[DashboardRequest], Finding]


def at_url(url: str, *, is_dev: bool) -> Finding:
    """An engine with an API at a URL."""
    if is_dev and url.rstrip("/") in _DEFAULT_ORIGINS:
        return Finding(option="", variable="DURABLY_DEV=1")
    shown = shlex.quote(redact_url(url).rstrip("/"))
    name = "DURABLY_DEV" if is_dev else "DURABLY_ENGINE_URL"
    return Finding(option=f" --url {shown}", variable=f"{name}={shown}", needs_keys=not is_dev)


def at_address_of(request: DashboardRequest, *, is_dev: bool) -> Finding:
    """The engine that serves the dashboard itself.

    It has its API at the address that the browser has opened.
    """
    scheme, host = "https" if request.is_secure else "http", request.headers.get("host", "")
    return at_url(f"{scheme}://{host}{request.mount}", is_dev=is_dev)


def on_database(path: str) -> Finding:
    """An engine in an app's own processes."""
    return Finding(option=f" --db {shlex.quote(path)}")
