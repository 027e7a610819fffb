"""The HTTP client of steps, imported at its first use.

It needs aiohttp, which takes more time and memory than the rest of an engine. Most engines in an app's process do
without.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model.requests import OutboundClient as OutboundClient
    from .model.requests import perform as perform


def __getattr__(name: str) -> object:
    if name not in ("OutboundClient", "perform"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module("durably.engine.model.requests"), name)
    return found
