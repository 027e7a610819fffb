"""``ctx.logger``, and the loggers that a client accepts.

A client takes loggers of the standard library, structlog and loguru, or any similar object. ``ctx.logger`` is silent
while memos are replayed, so that a line is logged once and not at each call. Its lines name function, run and step.
"""

import contextlib
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from durably.protocol.text import printable, printable_lines

from .errors import FunctionConfigInvalidError
from .execution import Replay, in_step

Logger = logging.Logger | logging.LoggerAdapter[Any]
_STANDARD = (logging.Logger, logging.LoggerAdapter)
_METHODS = frozenset(
    ("debug", "info", "warning", "error", "critical", "exception", "warn", "fatal", "log", "msg", "trace", "success")
)
_ASYNC_METHODS = frozenset(f"a{name}" for name in _METHODS)  # structlog's


_OPTIONS = frozenset(("exc_info", "stack_info", "stacklevel", "extra"))
"""The options of ``logging.Logger.log``."""


class _Fallback(logging.StreamHandler[Any]):
    """Writes lines of runs to stderr if no logging is configured.

    ``logging.lastResort`` does the same for warnings.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))

    @property
    def stream(self) -> Any:
        return sys.stderr


_fallback = _Fallback()


KeepLine = Callable[[str, str, str | None], None]
"""Takes the level, the message and the step of a line for the engine."""


class RunContext(msgspec.Struct):
    """The fields of one call's lines. The step is the one whose handler logs, if any.

    ``find_keeper`` returns a function that also takes the lines, in development. It is called when there is a line.
    """

    replay: Replay
    app_id: str
    function_id: str
    run_id: str
    find_keeper: Callable[[], KeepLine | None] | None = None

    @property
    def is_silent(self) -> bool:
        return self.replay.is_replaying

    def fields(self) -> dict[str, str]:
        step = in_step.get()
        fields = {"app_id": self.app_id, "function_id": self.function_id, "run_id": self.run_id}
        return fields if step is None else {**fields, "step_id": step.request.step_id}

    def keep_line(self, level: str, message: Any, args: tuple[object, ...], exc_info: object = None) -> None:
        """Pass a line to ``keep``.

        Its errors are ignored: the line is in the app's own log.
        """
        if self.find_keeper is None or (keep := self.find_keeper()) is None:
            return
        with contextlib.suppress(Exception):
            step = in_step.get()
            name = None if step is None else step.name
            keep(level, _with_traceback(_format(str(message), args), exc_info), name)

    def prefix(self) -> str:
        """The ids of function, run and step, on one line.

        The ids come from the request, which is not authenticated in development.
        """
        fields = self.fields()
        return printable(" ".join(fields[name] for name in ("function_id", "run_id", "step_id") if name in fields))


class RunLogger(logging.LoggerAdapter[Any]):
    """``ctx.logger`` over a logger of the standard library.

    Each record has the attributes ``app_id``, ``function_id`` and ``run_id``, in a step's handler ``step_id``, and a
    message that begins with them. If no handler is configured, lines from INFO on (or from the logger's own level) go
    to stderr.
    """

    extra: Any
    """The ``RunContext``."""

    def isEnabledFor(self, level: int) -> bool:
        if self.extra.is_silent:
            return False
        if not self._is_unconfigured():
            return super().isEnabledFor(level)
        base = self._base()
        return level >= (base.level or min(logging.INFO, base.getEffectiveLevel()))

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if not self.isEnabledFor(level):
            return
        self.extra.keep_line(logging.getLevelName(level), msg, args, kwargs.get("exc_info"))
        kwargs["extra"] = {**self.extra.fields(), **(kwargs.get("extra") or {})}
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        template, values = _with_prefix(self.extra.prefix(), str(msg), args)
        if self._is_unconfigured():
            self._write(level, template, values, kwargs)
        else:
            self.logger.log(level, template, *values, **kwargs)

    def _is_unconfigured(self) -> bool:
        return not self.logger.hasHandlers()

    def _base(self) -> logging.Logger:
        logger: Any = self.logger
        while not isinstance(logger, logging.Logger):
            logger = logger.logger
        return logger

    def _write(self, level: int, template: str, values: tuple[object, ...], kwargs: dict[str, Any]) -> None:
        exc_info = kwargs.get("exc_info")
        if isinstance(exc_info, BaseException):
            exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
        elif exc_info and not isinstance(exc_info, tuple):
            exc_info = sys.exc_info()
        logger = self._base()
        record = logger.makeRecord(logger.name, level, "", 0, template, values, exc_info or None, extra=kwargs["extra"])
        _fallback.handle(record)


def _format(template: str, args: tuple[Any, ...]) -> str:
    """The message as ``logging`` formats it."""
    if not args:
        return template
    return template % (args[0] if len(args) == 1 and isinstance(args[0], Mapping) and args[0] else args)


def _with_traceback(message: str, exc_info: object) -> str:
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if error and not isinstance(error, BaseException):
        error = sys.exc_info()[1]
    if not isinstance(error, BaseException):
        return message
    return f"{message}\n{''.join(traceback.format_exception(error)).rstrip()}"


def _with_prefix(prefix: str, message: str, args: tuple[object, ...]) -> tuple[str, tuple[object, ...]]:
    """The template and the arguments of a line with its prefix.

    The prefix is an argument, so that the template stays the same for all runs: tools group lines by it.
    """
    if len(args) == 1 and isinstance(args[0], Mapping):
        return f"[{prefix.replace('%', '%%')}] {message}", args
    return f"[%s] {message if args else message.replace('%', '%%')}", (prefix, *args)


_NAMES = {
    "debug": ("debug", "info"),
    "info": ("info",),
    "warning": ("warning", "warn", "info"),
    "error": ("error",),
    "exception": ("error",),
}
"""The methods with which the SDK logs, and the methods of a logger that replace them, the first that it has."""


class AnyLogger:
    """A logger that is not from the standard library, as the SDK itself logs to it.

    Messages are complete strings. The object does everything else.
    """

    def __init__(self, target: Any) -> None:
        missing = [name for name in ("info", "error") if not callable(getattr(target, name, None))]
        if missing:
            raise FunctionConfigInvalidError(
                f"Client.logger must have methods like logging.Logger's; {target!r} has no {' and no '.join(missing)}"
            )
        self.target = target

    def __getattr__(self, name: str) -> Any:
        return partial(self._log, name) if name in _NAMES else getattr(self.target, name)

    def _log(self, name: str, message: str, *args: object, exc_info: object = None, **options: Any) -> None:
        """Log, and ignore exceptions of the object, so that they do not affect runs."""
        text = _with_traceback(message % args if args else message, exc_info or name == "exception")
        write = next(method for each in _NAMES[name] if callable(method := getattr(self.target, each, None)))
        with contextlib.suppress(Exception):
            write(text)


class AnyRunLogger:
    """``ctx.logger`` over a logger that is not from the standard library.

    An object with ``bind``, such as structlog's and loguru's, is bound to the fields. Otherwise messages begin with
    them.
    """

    def __init__(self, target: Any, context: RunContext) -> None:
        self._target = target
        self._context = context

    def __getattr__(self, name: str) -> Any:
        if name == "bind":
            return lambda *args, **values: AnyRunLogger(self._target.bind(*args, **values), self._context)
        if name in _METHODS or name in _ASYNC_METHODS:
            return self._method(name)
        return getattr(self._target, name)

    def _method(self, name: str) -> Callable[..., Any]:
        """A log method that adds the fields of the run.

        The fields are read at the call, not at the lookup, because the caller may be a step's handler.
        """
        is_async = name in _ASYNC_METHODS or inspect.iscoroutinefunction(getattr(self._target, name))

        def write(*args: Any, **options: Any) -> Any:
            if self._context.is_silent:
                return _log_nothing() if is_async else None
            if self._context.find_keeper is not None:
                _keep_call(self._context, name.removeprefix("a") if name in _ASYNC_METHODS else name, args, options)
            if callable(getattr(self._target, "bind", None)):
                return getattr(self._target.bind(**self._context.fields()), name)(*args, **options)
            place = 1 if name == "log" else 0  # after the level
            if len(args) > place and isinstance(args[place], str):
                text = f"[{self._context.prefix()}] {args[place]}"
                args = (*args[:place], text, *args[place + 1 :])
            return getattr(self._target, name)(*args, **options)

        return write


_LEVEL_NAMES = {"exception": "ERROR", "warn": "WARNING", "fatal": "CRITICAL", "msg": "INFO"}


def _keep_call(context: RunContext, name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """Keep the line of a call of an unknown logger. Keyword values follow the message."""
    with contextlib.suppress(Exception):
        level = _LEVEL_NAMES.get(name, name.upper())
        if name == "log":
            level, args = args[0] if isinstance(args[0], str) else logging.getLevelName(args[0]), args[1:]
        message, *others = args or ("",)
        try:
            message = _format(str(message), tuple(others))
        except (TypeError, ValueError):  # a template of another kind
            message = " ".join(map(str, args))
        values = "".join(f" {key}={value!r}" for key, value in options.items() if key not in _OPTIONS)
        context.keep_line(level, f"{message}{values}", (), options.get("exc_info") or name == "exception")


async def _log_nothing() -> None:
    """Replaces an async method during the replay."""


def as_logger(logger: Any) -> Any:
    """A logger that the SDK can log to. Raises ``FunctionConfigInvalidError``."""
    return logger if isinstance(logger, (*_STANDARD, AnyLogger)) else AnyLogger(logger)
