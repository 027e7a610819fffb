"""Tools for tests of apps.

They are an engine that skips time, a check of determinism, and runtimes of platforms for functions.
"""

from typing import TYPE_CHECKING, Any

from .function_platforms import DigitalOceanSimulator, LambdaSimulator

if TYPE_CHECKING:
    from .determinism import NotDeterministicError
    from .engine import SyncTestEngine, SyncTestRun, TestEngine, TestRun, check_determinism
    from .runs import RunStuckError, RunUnknownError, TestStep

__all__ = [
    "DigitalOceanSimulator",
    "LambdaSimulator",
    "NotDeterministicError",
    "RunStuckError",
    "RunUnknownError",
    "SyncTestEngine",
    "SyncTestRun",
    "TestEngine",
    "TestRun",
    "TestStep",
    "check_determinism",
]

_MODULES = {
    "NotDeterministicError": "determinism",
    "RunStuckError": "runs",
    "RunUnknownError": "runs",
    "check_determinism": "engine",
    "SyncTestEngine": "engine",
    "SyncTestRun": "engine",
    "TestEngine": "engine",
    "TestRun": "engine",
    "TestStep": "runs",
}
"""Names that need the engine, and their modules, which are imported at their first use."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
