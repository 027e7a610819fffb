"""The program that serves a user's app, in a process of its own: ``python -m durably.cli.app_server module:app``.

``durably dev`` starts it, and restarts it when the source changes. It imports user code and its framework's
server; it knows an engine only from its environment. Errors end it with ``EXIT_REPORTED`` after one or
two lines on stderr.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from .app_import import AppImportError, import_app
from .app_kinds import ACCEPTED, AppKind, NotAnAppError, detect_kind
from .text import Styled, echo, fit_lines, style

Server = Callable[[Any, str, int], None]
"""Serves an app at a host and port until SIGTERM."""

EXIT_REPORTED = 3
"""Exit status of a server that has said what was wrong."""
GRACE_SECONDS = 2
_PARENT_CHECK_SECONDS = 0.5


def serve_asgi(app: Any, host: str, port: int) -> None:
    import uvicorn

    uvicorn.run(
        app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_SECONDS
    )


def serve_wsgi(app: Any, host: str, port: int) -> None:
    from .wsgi_server import serve

    serve(app, host, port)


def serve_tornado(app: Any, host: str, port: int) -> None:
    import asyncio

    async def listen() -> None:
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        server = app.listen(port, host)
        await stopped.wait()
        server.stop()

    asyncio.run(listen())


def serve_digital_ocean(main: Any, host: str, port: int) -> None:
    from durably.testing import DigitalOceanSimulator

    serve_wsgi(DigitalOceanSimulator(main), host, port)


SERVERS: dict[AppKind, Server] = {
    AppKind.ASGI: serve_asgi,
    AppKind.WSGI: serve_wsgi,
    AppKind.TORNADO: serve_tornado,
    AppKind.DIGITAL_OCEAN: serve_digital_ocean,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve an app.")
    parser.add_argument("target")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="Only see whether there is such an app.")
    arguments = parser.parse_args()
    follow_parent()
    logging.lastResort = _ProminentWarnings(logging.WARNING)
    escape_tracebacks()
    serve, app = _load(arguments.target)
    if arguments.check:
        return
    serve(app, arguments.host, arguments.port)


def _load(target: str) -> tuple[Server, object]:
    """The app, and what can serve it. Exits with ``EXIT_REPORTED`` where there is none."""
    try:
        app = import_app(target)
        return SERVERS[detect_kind(app)], app
    except AppImportError as error:
        message = str(error)
    except NotAnAppError as error:
        message = f"{target} is {error}, not an app\nGive {ACCEPTED}."
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(EXIT_REPORTED)


class _ProminentWarnings(logging.Handler):
    """Shows warnings and errors of an app that configures no logging with their level, in colour on a terminal.

    Python's own handler of last resort prints the bare message, which is lost among the lines of runs.
    """

    def emit(self, record: logging.LogRecord) -> None:
        colour = "red" if record.levelno >= logging.ERROR else "yellow"
        level = style(record.levelname, fg=colour, bold=True)
        echo(Styled(f"{level}: {fit_lines(self.format(record))}"), err=True)


def escape_tracebacks() -> None:
    """Have every log record of this process hold its traceback with control characters escaped.

    An exception's message often quotes an event, and anybody may send those. Formatters use the text that a record has.
    """
    make_record = logging.getLogRecordFactory()
    formatter = logging.Formatter()

    def make_escaped(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = fit_lines(formatter.formatException(record.exc_info))
        return record

    logging.setLogRecordFactory(make_escaped)


def follow_parent() -> None:
    """End when the parent process does. The terminal sends Ctrl-C to both: the parent ends this one in its own time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="durably-parent-watch").start()


if __name__ == "__main__":
    main()
