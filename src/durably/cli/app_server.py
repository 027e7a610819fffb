"""Child processes that end with their parent: a program that serves a user's app, and a guard of other programs.

``python -m durably.cli.app_server MODULE:APP`` serves an app. With ``--guard PROGRAM ARGUMENT…``, it ends a program
with its parent. The guarded program also ends by SIGTERM. Ctrl-C, which the terminal sends to all processes, does not
reach the child processes: their parent ends them.
"""

import argparse
import contextlib
import importlib
import inspect
import logging
import os
import reprlib
import signal
import socketserver
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from durably.protocol.text import suggest

from .text import Styled, echo, fit_lines, style

EXIT_REPORTED = 3
"""Exit status of a child process that has printed its error."""
GRACE_SECONDS = 2
PARENT_VARIABLE = "_DURABLY_PARENT_PID"
"""Environment variable with the id of the process that starts another one, which must end with it.

Without it, a process whose parent ends before it first looks takes its next parent for the first one.
"""
_PARENT_CHECK_SECONDS = 0.5
USUAL_NAMES = ("app", "application", "main", "handler")
"""Names of apps in the documentation of FastAPI and Flask, of Django, of DigitalOcean and Google, and of AWS Lambda."""


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
            known = [each for each in getattr(found, "__dict__", ()) if not each.startswith("_")]
            hint = suggest(part, known) or "; name the object in it: module:name"
            raise AppImportError(f"{module_name} has no {part!r}{hint}") from None
    return found


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # A module may also exit.
        if isinstance(error, ModuleNotFoundError) and error.name and (name + ".").startswith(error.name + "."):
            module, _, last = name.rpartition(".")  # "main.py" names a file, "main.app" lacks the colon.
            meant = {"py": module, **{usual: f"{module}:{usual}" for usual in USUAL_NAMES}}.get(last)
            hint = f"; did you mean {meant!r}?" if meant and module in sys.modules else ""
            raise AppImportError(f"there is no module {error.name!r} in {Path.cwd()}{hint}") from None
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


def find_server(app: object) -> Callable[[Any, str, int], None]:
    """The function that serves an app at a host and port until SIGTERM. Raises ``AppImportError`` for no app.

    ASGI apps take three arguments. WSGI apps and functions of DigitalOcean and AWS Lambda take two; those of the
    platforms' documentation are ``event`` and ``context``. Functions of Google Cloud take a ``request``.
    """
    for name, serve in (("tornado.web", serve_tornado), ("aiohttp.web", serve_aiohttp)):
        web = sys.modules.get(name)
        if web is not None and isinstance(app, web.Application):
            return serve
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names: list[str] = []
    if callable(app) and not inspect.isclass(app):
        with contextlib.suppress(TypeError, ValueError):  # Some functions in C have no signature.
            parameters = inspect.signature(app).parameters.values()
            names = [each.name for each in parameters if each.kind in by_position and each.default is each.empty]
    is_async = inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(getattr(app, "__call__", None))  # noqa: B004
    if len(names) == 3:
        return serve_asgi
    if len(names) == 2 and not is_async:
        if names[0] != "event" and names[1] != "context":
            return serve_wsgi
        return serve_lambda if "durably.aws_lambda" in sys.modules else serve_digital_ocean
    if names == ["request"] and not is_async:
        return serve_google_cloud
    raise AppImportError(
        f"{reprlib.repr(app)} is not an app: give an ASGI app (FastAPI, Django's ASGI), a WSGI app (Flask, Django's "
        "WSGI), an Application of Tornado or aiohttp, or a function of DigitalOcean or AWS Lambda (event, context), or "
        "of Google Cloud (request)"
    )


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


def serve_aiohttp(app: Any, host: str, port: int) -> None:
    from aiohttp import web

    web.run_app(app, host=host, port=port, shutdown_timeout=GRACE_SECONDS, access_log=None, print=None)


def serve_digital_ocean(main: Any, host: str, port: int) -> None:
    from durably.testing import DigitalOceanSimulator

    serve_wsgi(DigitalOceanSimulator(main), host, port)


def serve_lambda(handler: Any, host: str, port: int) -> None:
    from durably.testing import LambdaSimulator

    serve_wsgi(LambdaSimulator(handler), host, port)


def serve_google_cloud(function: Any, host: str, port: int) -> None:
    """Serve at every path, as Google's ``functions-framework`` does."""
    import flask

    from durably.web.flask import current_object

    app = flask.Flask(__name__)
    app.before_request(lambda: function(current_object(flask.request)))
    serve_wsgi(app, host, port)


def main() -> None:
    if sys.argv[1:2] == ["--guard"]:
        guard(sys.argv[2:])
    parser = argparse.ArgumentParser(description="Serve an app.")
    parser.add_argument("target")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    follow_parent()
    logging.lastResort = _ProminentWarnings(logging.WARNING)
    escape_tracebacks()
    try:
        app = import_app(arguments.target)
        serve = find_server(app)
        _refuse_own_engine(arguments.target)
    except AppImportError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(EXIT_REPORTED)
    serve(app, arguments.host, arguments.port)


def _refuse_own_engine(target: str) -> None:
    """Raises ``AppImportError`` if the app has an engine itself and no other engine can call it.

    If it were served, its own engine would run what waits in its database.
    """
    django = sys.modules.get("django.urls")
    if django is not None:  # It loads urls.py with the first request.
        with contextlib.suppress(Exception):
            _ = django.get_resolver().url_patterns
    process, handler = sys.modules.get("durably.embedded.process"), sys.modules.get("durably.comm.handler")
    names = [] if process is None else process.names_of_engines()
    if names and not (handler is not None and handler.serves_over_http()):
        raise AppImportError(
            f"{target} has an engine in its own processes ({', '.join(names)}), which calls its functions without "
            f"HTTP: start the app by its own server with DURABLY_DEV=1, such as "
            f"`{'python manage.py runserver' if django else f'uvicorn {target} --reload'}`, and not by `durably dev`"
        )


def follow_parent(end: Callable[[], object] = lambda: os._exit(1)) -> None:
    """Call ``end`` when this process's parent ends. Ctrl-C is ignored: the parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = int(os.environ.pop(PARENT_VARIABLE, 0)) or os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        end()

    threading.Thread(target=watch, daemon=True, name="durably-parent-watch").start()


def guard(command: Sequence[str]) -> NoReturn:
    """Run a program, and end it with this process's parent."""

    def end(*_: object) -> None:
        program.terminate()
        try:
            program.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            program.kill()
        os._exit(0)

    environment = {name: value for name, value in os.environ.items() if name != PARENT_VARIABLE}
    program = subprocess.Popen(command, env=environment, start_new_session=True)
    signal.signal(signal.SIGTERM, end)
    follow_parent(end)
    # A shell passes on the status of a signal like this.
    status = program.wait()
    sys.exit(128 - status if status < 0 else status)


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
