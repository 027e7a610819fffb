"""A program that serves a user's app in a process of its own.

The command is ``python -m durably.cli.processes.app_server module:app``. ``durably dev`` starts it, and restarts it
when the source changes. It imports the user's code and its framework's server. It finds the engine by its environment.
Errors end it with ``EXIT_REPORTED`` after one or two lines on stderr.
"""

import argparse
import contextlib
import logging
import signal
import socketserver
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from durably.cli.output.text import Styled, echo, fit_lines, style

from .app_loading import ACCEPTED, AppImportError, AppKind, NotAnAppError, detect_kind, import_app
from .guard import EXIT_REPORTED, EXPLANATION, GRACE_SECONDS, follow_parent

Server = Callable[[Any, str, int], None]
"""Serves an app at a host and port until SIGTERM."""


def serve_asgi(app: Any, host: str, port: int) -> None:
    import uvicorn

    uvicorn.run(
        app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_SECONDS
    )


class ThreadingWSGIServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        # HTTPServer would query the DNS for the host's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class QuietRequestHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """The engine reports calls."""


def serve_wsgi(app: Any, host: str, port: int) -> None:
    """Serve with a small threaded server of the standard library, until SIGTERM."""
    server = ThreadingWSGIServer((host, port), QuietRequestHandler)
    server.set_app(app)

    def stop(signum: int, frame: FrameType | None) -> None:
        # shutdown() waits for serve_forever(), which runs in the thread that this handler interrupts.
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    server.serve_forever(poll_interval=0.1)


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


_SERVER_COMMANDS = {
    AppKind.ASGI: "uvicorn {target} --reload",
    AppKind.WSGI: "flask --app {target} run --debug",
    AppKind.TORNADO: "python main.py",
    AppKind.DIGITAL_OCEAN: "python main.py",
}
"""Commands of servers for development, as examples."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve an app.")
    parser.add_argument("target")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="Only see whether there is such an app.")
    parser.add_argument("--explain", action="store_true", help="Only print why there is no endpoint.")
    arguments = parser.parse_args()
    follow_parent()
    logging.lastResort = _ProminentWarnings(logging.WARNING)
    escape_tracebacks()
    serve, app = _load(arguments.target)
    if arguments.check:
        return
    if arguments.explain:
        print(f"{EXPLANATION}{_explain_missing_endpoint(arguments.target, detect_kind(app))}")
        return
    if _names_of_engines():
        _refuse_own_engine(arguments.target, detect_kind(app))
    serve(app, arguments.host, arguments.port)


def _names_of_engines() -> list[str]:
    """The engines that this process has itself."""
    process = sys.modules.get("durably.embedded.process")
    return [] if process is None else process.names_of_engines()


def _refuse_own_engine(target: str, kind: AppKind) -> None:
    """Exit with ``EXIT_REPORTED`` if no other engine can call the app.

    If it were served, its own engine would run what waits in its database.
    """
    handler = sys.modules.get("durably.comm.handler")
    explanation = _explain_missing_endpoint(target, kind)
    if explanation and not (handler is not None and handler.serves_over_http()):
        print(f"Error: {explanation}", file=sys.stderr)
        sys.exit(EXIT_REPORTED)


def _explain_missing_endpoint(target: str, kind: AppKind) -> str:
    """The reason why an engine cannot call the app; empty if it is not known."""
    django = sys.modules.get("django.urls")
    if django is not None:  # It loads urls.py with the first request.
        with contextlib.suppress(Exception):
            _ = django.get_resolver().url_patterns
    names = _names_of_engines()
    if not names:
        return ""
    command = "python manage.py runserver" if django is not None else _SERVER_COMMANDS[kind].format(target=target)
    return (
        f"{target} has an engine in its own processes ({', '.join(names)}), which calls its functions without HTTP: "
        f"start the app by its own server, and not by `durably dev`, for example: DURABLY_DEV=1 {command}"
    )


def _load(target: str) -> tuple[Server, object]:
    """The app and its server. Exits with ``EXIT_REPORTED`` if there is no such app."""
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
    """The log of an app that configures no logging.

    It prints warnings and errors with their level, in colour on a terminal. Python's own handler of last resort prints
    only the message, which is hard to see among the lines of runs.
    """

    def emit(self, record: logging.LogRecord) -> None:
        colour = "red" if record.levelno >= logging.ERROR else "yellow"
        level = style(record.levelname, fg=colour, bold=True)
        echo(Styled(f"{level}: {fit_lines(self.format(record))}"), err=True)


def escape_tracebacks() -> None:
    """Escape control characters in the tracebacks of all log records of this process.

    An exception's message often quotes an event, whose sender may be hostile. Formatters use the text of the record.
    """
    make_record = logging.getLogRecordFactory()
    formatter = logging.Formatter()

    def make_escaped(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = fit_lines(formatter.formatException(record.exc_info))
        return record

    logging.setLogRecordFactory(make_escaped)


if __name__ == "__main__":
    main()
