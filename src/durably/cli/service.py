"""What the commands that run until they are stopped share: event loop, log, tracing, and syncs of apps."""

import asyncio
import datetime as dt
import gc
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from textwrap import indent
from typing import TYPE_CHECKING, Any

import msgspec

from durably.protocol.engine_errors import EngineError
from durably.protocol.text import get_logger, printable, printable_json, printable_lines, redact_url

from .text import CliError, Console

if TYPE_CHECKING:
    from durably.engine.api.http.syncs import AppDiscovery

# -- the event loop


@contextmanager
def first_failure() -> Iterator[None]:
    """Raise the error of a task group's first failed task, not the group of errors.

    It is put around a task group whose tasks run until cancelled.
    """
    try:
        yield
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


def run_until_stopped(work: Coroutine[None, None, None]) -> None:
    """Run ``work`` until it ends, or until a first signal cancels it.

    A cancellation by the signal is not an error. A second SIGINT interrupts. A second SIGTERM is ignored: supervisors
    often send one to the process and one to its group.
    """

    async def run() -> None:
        task = asyncio.create_task(work)
        stopped = False

        def stop(*_: object) -> None:
            nonlocal stopped
            if stopped:
                return
            stopped = True
            loop.call_soon_threadsafe(task.cancel)
            signal.signal(signal.SIGINT, signal.default_int_handler)

        loop = asyncio.get_running_loop()
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, stop)
        try:
            await task
        except asyncio.CancelledError:
            if not stopped:
                raise

    new_event_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):  # With uvloop, an engine needs about three quarters of the CPU time.
        from uvloop import new_event_loop
    gc.collect()
    gc.freeze()  # Each garbage collection would traverse the loaded modules.
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run())


# -- the log and traces


class JsonFormatter(logging.Formatter):
    """Formats log records as JSON objects.

    An object is ``{"ts", "level", "logger", "message", …}``, and the values given to ``log_fields``.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": dt.datetime.fromtimestamp(record.created, dt.UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = record.exc_text or self.formatException(record.exc_info)
        return printable_json(msgspec.json.encode(line).decode())


class TextFormatter(logging.Formatter):
    """Formats log records as lines for people.

    A line has time, level, logger, message, and ``name=value`` for each value. Values with spaces or quotes are JSON.
    The lines of a traceback follow, indented: a message in it cannot look like another line of the log.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        fields = [f"{name}={_text_of(value)}" for name, value in getattr(record, "fields", {}).items()]
        line = printable(" ".join([time, record.levelname, record.name, record.getMessage(), *fields]))
        if record.exc_info:
            line += f"\n{indent(printable_lines(record.exc_text or self.formatException(record.exc_info)), '  ')}"
        return line


def _text_of(value: object) -> str:
    encoded = msgspec.json.encode(value).decode()
    bare = encoded[1:-1] if isinstance(value, str | dt.datetime) else encoded
    return bare if bare and not any(character in bare for character in ' "\\=') else encoded


def write_log(log_format: str) -> None:
    """Write the log to stderr, as ``json`` or ``text``."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Its lines about a stop speak of cancelled activities. Calls are given back before, and the engine says so.
    get_logger("temporalio.worker").setLevel(logging.WARNING)


def log_fields(logger: logging.Logger, message: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log a message with values beside it."""
    logger.log(level, message, extra={"fields": fields})


_dev_logger = get_logger("durably.dev")


class LogConsole(Console):
    """The output of a command, as lines of its log."""

    def say(self, line: str) -> None:
        _dev_logger.info("%s", line)

    note = say

    def warn(self, line: str) -> None:
        _dev_logger.warning("%s", line)


def open_tracing(is_on: bool) -> AbstractContextManager[Any]:
    """The engine's tracing for ``--otel``; a context of ``None`` without it.

    Raises ``CliError`` if the extra is not installed, or a variable asks for a protocol that it does not have.
    """
    if not is_on:
        return nullcontext()
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        if (protocol := os.environ.get(name, "http/protobuf")) != "http/protobuf":
            raise CliError(f"--otel exports by http/protobuf only: {name} must not be {protocol!r}")
    try:
        from durably.otel.engine import exporting

        return exporting()
    except ModuleNotFoundError as error:
        raise CliError(f'--otel: {error.name} is not installed; it comes with pip install "durably[otel]"') from None


# -- syncs

_UNREACHED_PAUSE_SECONDS = 1.0


async def keep_synced(
    url: str, discovery: "AppDiscovery", *, interval: float, say: Callable[[str], None], warn: Callable[[str], None]
) -> None:
    """Sync with the app at ``url`` every ``interval`` seconds.

    If ``interval`` is 0, stop at the first success. Reports each problem once, and its end.
    """
    from durably.engine.api.http.syncs import AppUnreachedError

    known: str | None = None
    while True:
        problem, pause = None, interval
        try:
            await discovery.sync(url)
        except EngineError as error:
            problem = error.message
            pause = _UNREACHED_PAUSE_SECONDS if isinstance(error, AppUnreachedError) else interval
        if problem and problem != known:
            warn(f"{problem}; waiting for it")
        elif known and not problem:
            say(f"the app at {redact_url(url)} answers")
        known = problem
        if not problem and not interval:
            return
        await asyncio.sleep(pause or _UNREACHED_PAUSE_SECONDS)
