"""Routes of the dashboard.

Which handler answers which path, and what a person needs to be allowed for it.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from .messages import DashboardResponse

VIEW = "view"
_ARGUMENT = re.compile(r"\{(\w+)\}")
_WITH_SLASHES = frozenset({"function_id"})
"""Arguments that may contain slashes: apps choose the ids of their functions."""


class Live(Enum):
    """The changes of the engine that update a page while it is open."""

    NOTHING = "nothing"
    ALL = "all runs"
    RUN = "the run that the path names"


Handler = Callable[[Any], Awaitable[DashboardResponse]]
"""A function of a ``Visit``."""


@dataclass(frozen=True)
class Route:
    """A page or an action.

    ``pattern`` is a path like ``"/runs/{run_id}"``. ``action`` is the name of what a person needs to be allowed to do:
    ``"view"``, or an operation of the engine. ``subject`` is the argument of the path that the action changes.
    """

    method: str
    pattern: str
    handle: Handler
    action: str = VIEW
    subject: str | None = None
    live: Live = field(default=Live.NOTHING)

    def __post_init__(self) -> None:
        if (self.method == "POST") == (self.action == VIEW):
            raise ValueError(f"{self.method} {self.pattern}: a POST route names its action, and no other route does")

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        parts = _ARGUMENT.split(self.pattern)
        parts[::2] = map(re.escape, parts[::2])
        parts[1::2] = (f"(?P<{name}>{'.+?' if name in _WITH_SLASHES else '[^/]+'})" for name in parts[1::2])
        return re.compile("".join(parts) + "/?")

    def match(self, path: str) -> dict[str, str] | None:
        """The arguments in a path; ``None`` if it is another route's."""
        found = self._expression.fullmatch(path)
        return None if found is None else found.groupdict()


def first_segments(routes: Iterable[Route]) -> frozenset[str]:
    """The first parts of the paths of routes, such as ``"runs"``; ``""`` for the root."""
    return frozenset(route.pattern.split("/")[1] for route in routes)


def find_route(routes: Iterable[Route], method: str, path: str) -> tuple[Route, Mapping[str, str]] | frozenset[str]:
    """The route of a request, and the arguments in its path.

    The methods that the path has, if no route takes the request.
    """
    methods = set[str]()
    wanted = "GET" if method == "HEAD" else method
    for route in routes:
        if (arguments := route.match(path)) is not None:
            if route.method == wanted:
                return route, arguments
            methods.add(route.method)
    return frozenset(methods)
