"""What processes need to reach each other, imported at its first use.

It has an HTTP server and a client, which take more time and memory than the engine. An app in one process does without.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from durably.engine.api.http.metrics import EngineCollector as EngineCollector

    from .follower import Follower as Follower
    from .remote_workers import LeaderApi as LeaderApi
    from .remote_workers import Workers as Workers

_MODULES = {
    "EngineCollector": "durably.engine.api.http.metrics",
    "Follower": "durably.embedded.follower",
    "LeaderApi": "durably.embedded.remote_workers",
    "Workers": "durably.embedded.remote_workers",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_MODULES[name]), name)
    return found
