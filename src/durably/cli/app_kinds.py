"""Telling what an object that is to be served is: an ASGI or WSGI app, a Tornado application, or a function of
DigitalOcean's. Looks at the object alone; imports no framework.
"""

import inspect
import sys
from enum import StrEnum


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
    """The object is none of what can be served."""


def detect_kind(app: object) -> AppKind:
    """Raises ``NotAnAppError``, whose text says what was found instead.

    ASGI apps take three arguments, and WSGI apps and DigitalOcean functions two, distinguished by their names:
    those of the platform's documentation are ``event`` and ``context``.
    """
    if _is_tornado(app):
        return AppKind.TORNADO
    if inspect.isclass(app) or not callable(app):
        raise NotAnAppError(_describe(app))
    try:
        names = [parameter.name for parameter in _positional(inspect.signature(app))]
    except (TypeError, ValueError):
        raise NotAnAppError(f"{_describe(app)} of unknown arguments") from None
    if len(names) == 3:
        return AppKind.ASGI
    if len(names) == 2 and not _is_async(app):
        return AppKind.DIGITAL_OCEAN if names[0] == "event" or names[1] == "context" else AppKind.WSGI
    raise NotAnAppError(f"{_describe(app)}({', '.join(names)})")


def _is_tornado(app: object) -> bool:
    web = sys.modules.get("tornado.web")
    return web is not None and isinstance(app, web.Application)


def _is_async(app: object) -> bool:
    return inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(getattr(app, "__call__", None))  # noqa: B004


def _positional(signature: inspect.Signature) -> list[inspect.Parameter]:
    """The parameters that a caller must give by position."""
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in signature.parameters.values() if p.kind in by_position and p.default is p.empty]


def _describe(app: object) -> str:
    if inspect.isclass(app):
        return f"the class {app.__name__}"
    if inspect.isroutine(app):
        return f"the function {getattr(app, '__name__', '')}"
    if inspect.ismodule(app):
        return f"the module {app.__name__}"
    return f"an object of type {type(app).__module__}.{type(app).__qualname__}"
