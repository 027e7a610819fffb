"""Telling green threads from real ones: the engine needs an event loop in a thread beside those that wait for it."""

import sys

_PATCHERS = (("gevent", "gevent.monkey", "is_module_patched"), ("eventlet", "eventlet.patcher", "is_monkey_patched"))
"""Who replaces threads, and the function of theirs that tells. What is not imported has replaced none."""


def refuse_green_threads() -> None:
    """Raises ``RuntimeError`` where gevent or eventlet has replaced this process's threads."""
    for name, module, question in _PATCHERS:
        patcher = sys.modules.get(module)
        if patcher is not None and any(getattr(patcher, question)(part) for part in ("thread", "threading")):
            raise RuntimeError(
                f"{name} has replaced this process's threads, and an engine in it would block them all: use workers "
                "with real ones (gunicorn -k gthread, say), or an engine of its own (`durably start`)"
            )
