"""One ``temporalio`` runtime per process, and what a fork does to it.

A runtime is a pool of native threads, which do not exist in a forked child: there, a client of the parent's runtime
never answers, and even freeing one waits for ever for those threads, at the latest when the child exits. So a child
starts a runtime of its own, and what it inherited is kept until the process is gone.

Nor does the interpreter's exit wait for those threads: one that is just handing an answer to Python then takes the
process down with a fatal error. So the exit gives them a moment first.
"""

import atexit
import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable

from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

from .errors import TemporalSettingsError

RuntimeFactory = Callable[[], Runtime]


def plain_runtime() -> Runtime:
    return Runtime(telemetry=TelemetryConfig())


@functools.cache
def measured_runtime(address: str) -> RuntimeFactory:
    """What makes a runtime that serves its metrics to Prometheus at ``address``."""

    def make() -> Runtime:
        metrics = PrometheusConfig(address, counters_total_suffix=True, unit_suffix=True, durations_as_seconds=True)
        try:
            return Runtime(telemetry=TelemetryConfig(metrics=metrics))
        except Exception as error:
            raise TemporalSettingsError(f"metrics cannot be served at {address}: {error}") from error

    return make


_EXIT_PAUSE = 0.02
"""Seconds at exit in which native threads finish what they began; they need microseconds."""

_lock = threading.Lock()
_runtimes: dict[RuntimeFactory, Runtime] = {}


def runtime_of_process(factory: RuntimeFactory = plain_runtime) -> Runtime:
    """This process's runtime, made by ``factory`` when it is first asked for. All connections share it."""
    with _lock:
        if factory not in _runtimes:
            if not _runtimes:
                atexit.register(time.sleep, _EXIT_PAUSE)
            _runtimes[factory] = factory()
        return _runtimes[factory]


def never_free(native: object) -> None:
    """Keep what belongs to the parent's runtime, through the interpreter's shutdown too."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(native))


def _start_anew() -> None:
    global _lock
    _lock = threading.Lock()
    for runtime in _runtimes.values():
        never_free(runtime)
    _runtimes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
