"""``Route``, which names the handler of a page, and ``Visit``, its argument.

A route says which path a handler answers, and what a person needs to be allowed for it. A visit is the request as
handlers see it.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from durably.engine.api.interface import Engine
from durably.engine.model.overview import EngineInfo

from .messages import (
    CSRF_FIELD,
    DashboardRequest,
    DashboardResponse,
    Finding,
    make_token,
    read_token,
    token_cookie,
)
from .templating import render

VIEW = "view"
NO_FIELDS: Mapping[str, str] = MappingProxyType({})
NOT_FOUND = Finding()
_ARGUMENT = re.compile(r"\{(\w+)\}")
_WITH_SLASHES = frozenset({"function_id"})
"""Arguments that may contain slashes: apps choose the ids of their functions."""
_MOST_FIELDS = 200
_OF_URLS = "%/?&=#:;,+@!$'()*~"


class Live(Enum):
    """The changes of the engine that update a page while it is open."""

    NOTHING = "nothing"
    ALL = "all runs"
    RUN = "the run that the path names"


Handler = Callable[["Visit"], Awaitable[DashboardResponse]]


@dataclass(frozen=True)
class Route:
    """A page or an action.

    ``pattern`` is a path like ``"/runs/{run_id}"``. ``action`` is the name of what a person needs to be allowed to do:
    ``"view"``, or an operation of the engine. ``subject`` is the argument of the path that the action changes.
    ``needs`` is the operation of the engine without which a page does not exist.
    """

    method: str
    pattern: str
    handle: Handler
    action: str = VIEW
    subject: str | None = None
    live: Live = Live.NOTHING
    needs: str | None = None

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


class PageError(Exception):
    """Ends a request with a page that says what was wrong, and what to do."""

    def __init__(self, status: int, title: str, message: str) -> None:
        super().__init__(message)
        self.status, self.title, self.message = status, title, message


class Notice(msgspec.Struct, frozen=True):
    """The outcome of an action, in a sentence."""

    text: str
    is_warning: bool = False


_NOTICES = {
    "sent": "The event was sent. What it starts is below.",
    "invoked": "The function was invoked. This is the new run.",
    "not-invoked": "The function was invoked, and no run has started. The reason is below.",
    "paused": "The function is paused. Its events start no runs until it is resumed.",
    "resumed": "The function is resumed.",
    "stopped": "The cancellation is stopped. It cancels no more runs.",
    "cancelled": "The run was cancelled.",
    "ended": "The run had already ended: nothing was changed.",
    "rerun": "This is the new run.",
    "selected-cancel_run": "The selected runs were cancelled. Those that had already ended stay as they are.",
    "selected-rerun": "The selected runs were started again.",
    "some-refused": "Some of the selected runs could not be changed: the function is paused or no longer served, the "
    "run is gone, or you may not change it. Open one to see which.",
    "replaying": "The runs are being replayed. The progress is below.",
    "cancelling": "The runs are being cancelled. The progress is below.",
    "answered": "The run has received the answer.",
    "closed": "The question is not open any more: nothing was changed.",
    "woken": "The run goes on now.",
    "awake": "The run does not sleep, and waits for no other attempt: nothing was changed.",
}
"""Notices after actions. The URL has the name of one, so that no other text can be shown."""


def read_notice(query: Mapping[str, str]) -> Notice | None:
    """The notice that the query names."""
    name = query.get("notice", "")
    return Notice(_NOTICES[name], is_warning=name == "some-refused") if name in _NOTICES else None


def parse_fields(text: str) -> dict[str, str]:
    """The fields of a query or a form that are not empty; the first one of each name.

    Raises ``PageError`` for too many fields.
    """
    try:
        pairs = parse_qsl(text, max_num_fields=_MOST_FIELDS, errors="replace")
    except ValueError:
        raise PageError(400, "Too many fields", f"A request may have {_MOST_FIELDS} fields.") from None
    return dict(reversed([(name, value.strip()) for name, value in pairs if value.strip()]))


class Visit:
    """A request, and the means to answer it.

    ``arguments`` are those of the path, ``query`` and ``form`` the fields that are not empty. ``live`` is the URL of
    the stream of changes that updates the page, if it is live. ``info`` describes the engine, ``finding`` how commands
    find it.
    """

    def __init__(
        self,
        engine: Engine,
        request: DashboardRequest,
        may: Callable[[str, str | None], Awaitable[bool]],
        *,
        info: EngineInfo,
        finding: Finding = NOT_FOUND,
        arguments: Mapping[str, str] = NO_FIELDS,
        form: Mapping[str, str] = NO_FIELDS,
    ) -> None:
        self.engine, self.request, self.arguments, self.form = engine, request, arguments, form
        self.info, self.finding = info, finding
        self.query = parse_fields(request.query)
        self.live: str | None = None
        self._may = may
        self._token = read_token(request)
        self._headers: list[tuple[str, str]] = []

    async def may(self, action: str, subject: str | None = None) -> bool:
        """Whether the engine offers an action, and the person may do it.

        A page hides the buttons that may not be used. A policy that fails, which is logged, hides them too.
        """
        try:
            return self.info.offers(action) and await self._may(action, subject)
        except PageError:
            return False

    def url(self, path: str, /, **query: Any) -> str:
        """A URL of the dashboard.

        ``path`` begins with a slash; fields that are ``None`` or empty are left out.
        """
        fields = urlencode({name: value for name, value in query.items() if value not in (None, "")})
        return f"{self.request.mount}{path}{'?' if fields else ''}{fields}" or "/"

    async def page(self, template: str, *, status: int = 200, **values: Any) -> DashboardResponse:
        """The answer with a page."""
        common = {
            "url": self.url,
            "here": self.request.path,
            "query": self.query,
            "notice": read_notice(self.query),
            "csrf": self._csrf,
            "csrf_field": CSRF_FIELD,
            "live": self.live,
            "info": self.info,
            "finding": self.finding,
        }
        # A page of a thousand steps takes tens of milliseconds. The event loop may be the app's own.
        body = await asyncio.to_thread(render, template, common | values)
        headers = [("content-type", "text/html; charset=utf-8"), ("cache-control", "no-store"), *self._headers]
        return DashboardResponse(status_code=status, headers=headers, body=body)

    def redirect(self, path: str, /, **query: Any) -> DashboardResponse:
        """The answer to an action: the page to show next."""
        location = quote(self.url(path, **query), safe=_OF_URLS)
        headers = [("location", location), ("cache-control", "no-store"), *self._headers]
        return DashboardResponse(status_code=303, headers=headers)

    def _csrf(self) -> str:
        """The token of the page's forms. The first one of a browser is sent as a cookie."""
        if self._token is None:
            self._token = make_token()
            self._headers.append(token_cookie(self._token, self.request))
        return self._token
