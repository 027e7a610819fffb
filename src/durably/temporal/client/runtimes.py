"""One ``temporalio`` runtime per process, also after a fork.

A runtime is a pool of native threads, which do not exist in a forked child. A client of the parent's runtime never
answers in a child, and freeing it would wait for those threads forever. So a child starts its own runtime, and never
frees the inherited one.

The interpreter's exit does not wait for those threads either. If such a thread passes an answer to Python during the
exit, the process ends with a fatal error. So the exit waits briefly for them.
"""

import atexit
import functools
import os
import threading
import time
from collections.abc import Callable

from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

from durably.temporal.compat import never_free
from durably.temporal.errors import TemporalSettingsError

GATEWAY_LATENCY = "durably_gateway_latency"
_WEB_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""The SDK's own buckets start at 50 milliseconds, within which most requests are answered, and end at ten seconds."""

RuntimeFactory = Callable[[], Runtime]


def plain_runtime() -> Runtime:
    return Runtime(telemetry=TelemetryConfig())


@functools.cache
def measured_runtime(address: str, processes: int = 1) -> RuntimeFactory:
    """A factory of runtimes that serve metrics to Prometheus at ``address``.

    ``address`` is ``host:port``. With several ``processes``, it takes the first free one of as many ports.
    """
    host, _, port = address.rpartition(":")
    addresses = [f"{host}:{int(port) + number}" for number in range(processes)]

    def make() -> Runtime:
        failure: Exception | None = None
        for each in addresses:
            try:
                return Runtime(telemetry=TelemetryConfig(metrics=_prometheus(each)))
            except Exception as error:
                failure = error
        places = address if processes == 1 else f"{addresses[0]} to {addresses[-1]}"
        raise TemporalSettingsError(f"metrics cannot be served at {places}: {failure}") from failure

    return make


def _prometheus(address: str) -> PrometheusConfig:
    return PrometheusConfig(
        address,
        counters_total_suffix=True,
        unit_suffix=True,
        durations_as_seconds=True,
        histogram_bucket_overrides={GATEWAY_LATENCY: _WEB_SECONDS},
    )


_EXIT_PAUSE = 0.02
"""Seconds at exit for native threads to finish; they need microseconds."""

_lock = threading.Lock()
_runtimes: dict[RuntimeFactory, Runtime] = {}


def runtime_of_process(factory: RuntimeFactory = plain_runtime) -> Runtime:
    """This process's runtime, made by ``factory`` at its first use.

    All connections share it.
    """
    with _lock:
        if factory not in _runtimes:
            if not _runtimes:
                atexit.register(time.sleep, _EXIT_PAUSE)
            _runtimes[factory] = factory()
        return _runtimes[factory]


def _reset_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    for runtime in _runtimes.values():
        never_free(runtime)
    _runtimes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
