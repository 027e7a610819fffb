"""A program that serves a user's app in a process of its own."""

import argparse
import contextlib
import difflib
import importlib
import inspect
import logging
import signal
import socketserver
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from .guard import EXIT_REPORTED, EXPLANATION, GRACE_SECONDS, follow_parent
from .text import Styled, echo, fit_lines, style

USUAL_NAMES = ("app", "application", "main")
"""Names of apps in the documentation of FastAPI and Flask, of Django, and of DigitalOcean."""


class AppImportError(Exception):
    """The app cannot be imported.

    The text has the reason. For an error in the user's code, it also has the line.
    """


def import_app(target: str, usual_names: Sequence[str] = USUAL_NAMES) -> object:
    """Import the object that ``target`` names.

    ``target`` is ``module:name``, dots allowed in both. ``module`` alone stands for the first of ``usual_names`` that
    the module has. Raises ``AppImportError``.
    """
    module_name, _, name = target.partition(":")
    module = _import_module(module_name)
    if not name:
        name = next((each for each in usual_names if hasattr(module, each)), usual_names[0])
    found: object = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise AppImportError(f"{module_name} has no {part!r}{_suggest(part, found)}") from None
    return found


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # A module may also exit.
        if isinstance(error, ModuleNotFoundError) and error.name and (name + ".").startswith(error.name + "."):
            raise AppImportError(f"there is no module {error.name!r} in {Path.cwd()}{_suggest_module(name)}") from None
        if isinstance(error, ModuleNotFoundError | ValueError | TypeError) and not _user_frames(error):
            raise AppImportError(f"{name!r} is not the name of a module; give module:app, like shop.main:app") from None
        raise AppImportError(f"importing {name} failed: {_describe_error(error)}") from None


def _describe_error(error: BaseException) -> str:
    summary = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        return f"{summary}\n  at {error.filename}, line {error.lineno}"
    frames = _user_frames(error)
    if not frames:
        return summary
    last = frames[-1]
    return f"{summary}\n  at {last.filename}, line {last.lineno}: {last.line}"


def _user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Frames outside the import machinery and this module.

    If some are in the working directory, only those.
    """
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<frozen ")
    ]
    here = str(Path.cwd())
    own = [frame for frame in frames if frame.filename.startswith(here) and "site-packages" not in frame.filename]
    return own or frames


def _suggest_module(name: str) -> str:
    """For ``main.py``, which names a file, and ``main.app``, which lacks the colon."""
    module, _, last = name.rpartition(".")
    if module not in sys.modules or last not in ("py", *USUAL_NAMES):
        return ""
    return f"; did you mean {module!r}?" if last == "py" else f"; did you mean '{module}:{last}'?"


def _suggest(name: str, found: object) -> str:
    public = [each for each in vars(found) if not each.startswith("_")] if hasattr(found, "__dict__") else []
    if close := difflib.get_close_matches(name, public, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; name the {'app' if name in USUAL_NAMES else 'object'} in it: module:name"


class AppKind(StrEnum):
    ASGI = "ASGI app"
    WSGI = "WSGI app"
    TORNADO = "Tornado application"
    DIGITAL_OCEAN = "DigitalOcean function"


ACCEPTED = (
    "an ASGI app (FastAPI, Django's ASGI), a WSGI app (Flask, Django's WSGI), a tornado.web.Application, "
    "or a DigitalOcean main(event, context)"
)


class NotAnAppError(Exception):
    """The object cannot be served."""


def detect_kind(app: object) -> AppKind:
    """Raises ``NotAnAppError``, whose text describes the object.

    ASGI apps take three arguments. WSGI apps and DigitalOcean functions take two; those of DigitalOcean's documentation
    are ``event`` and ``context``.
    """
    if _is_tornado(app):
        return AppKind.TORNADO
    if inspect.isclass(app) or not callable(app):
        raise NotAnAppError(_describe_object(app))
    try:
        names = [parameter.name for parameter in _positional(inspect.signature(app))]
    except (TypeError, ValueError):
        raise NotAnAppError(f"{_describe_object(app)} of unknown arguments") from None
    if len(names) == 3:
        return AppKind.ASGI
    if len(names) == 2 and not _is_async(app):
        return AppKind.DIGITAL_OCEAN if names[0] == "event" or names[1] == "context" else AppKind.WSGI
    raise NotAnAppError(f"{_describe_object(app)}({', '.join(names)})")


def _is_tornado(app: object) -> bool:
    web = sys.modules.get("tornado.web")
    return web is not None and isinstance(app, web.Application)


def _is_async(app: object) -> bool:
    return inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(getattr(app, "__call__", None))  # noqa: B004


def _positional(signature: inspect.Signature) -> list[inspect.Parameter]:
    """The parameters that a caller must give by position."""
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in signature.parameters.values() if p.kind in by_position and p.default is p.empty]


def _describe_object(app: object) -> str:
    if inspect.isclass(app):
        return f"the class {app.__name__}"
    if inspect.isroutine(app):
        return f"the function {getattr(app, '__name__', '')}"
    if inspect.ismodule(app):
        return f"the module {app.__name__}"
    return f"an object of type {type(app).__module__}.{type(app).__qualname__}"


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
