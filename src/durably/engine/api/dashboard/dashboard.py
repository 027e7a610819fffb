"""``Dashboard``, which answers requests: checks, pages, and streams of changes; ``KeySignIn`` in production.

The checks come before each page and action. By the streams, which are server-sent events, pages stay up to date.
"""

import asyncio
import base64
import hmac
import inspect
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace

import msgspec

from durably.engine.api.interface import Engine
from durably.engine.api.operations import ArgumentInvalidError
from durably.engine.model.overview import EngineInfo
from durably.engine.model.subscriptions import SparseLog
from durably.protocol import engine_errors as errors
from durably.protocol.errors import Error
from durably.protocol.text import get_logger, printable

from . import events, functions, overview, questions, run, runs
from .messages import HEADERS, Action, DashboardRequest, DashboardResponse, Finding, FindingOf, describe_forgery
from .templating import ASSETS, answer_static
from .visit import VIEW, Live, PageError, Route, Visit, find_route, first_segments, parse_fields

Authorize = Callable[[Action], bool | Awaitable[bool]]

_FORM = "application/x-www-form-urlencoded"
_STATUSES: dict[type[errors.EngineError], tuple[int, str]] = {
    errors.FunctionNotFoundError: (404, "There is no such function"),
    errors.RunNotFoundError: (404, "There is no such run"),
    errors.FunctionPausedError: (409, "The function is paused"),
    errors.DatabaseUnavailableError: (503, "The engine cannot answer at the moment"),
    errors.EngineClosedError: (503, "The engine is closing"),
    errors.NotSupportedError: (501, "This engine does not offer this"),
    errors.RunUnavailableError: (503, "The engine cannot answer at the moment"),
}

_UNUSUAL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters, and bytes that are not UTF-8. No id has them."""
LEAST_KEY_LENGTH = 16
_RETRY_MILLISECONDS = 2_000
_POLL_MILLISECONDS = 5_000
_STREAM_HEADERS = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-store"),
    ("x-accel-buffering", "no"),  # nginx would keep the events back
]
_NOT_OFFERED = ("This engine does not offer this", "Other pages do not link to it.")
_FAILED = ("The dashboard failed", "The log of the app or engine says why.")

_logger = get_logger("durably.dashboard")


def name_permission(action: str) -> str:
    """The permission that an action needs, in words."""
    return f"the permission {action}"


class DashboardConfigError(errors.EngineError):
    """A dashboard has no policy, or two, or a key that could be guessed."""


class Dashboard:
    """The dashboard of an engine.

    ``authorize`` gets an ``Action``, and returns or resolves to whether it is allowed. Raises ``DashboardConfigError``
    unless exactly one of ``authorize`` and ``allow_anonymous`` is given. ``caller`` is the name of the function that
    users call, for that error. ``raises`` are errors of ``authorize`` that the caller of ``handle`` answers.
    ``permission_of`` names the permission that an action needs, for people who lack it. ``finding_of`` says how
    commands find the engine.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        authorize: Authorize | None = None,
        allow_anonymous: bool = False,
        caller: str = "Dashboard",
        raises: tuple[type[Exception], ...] = (),
        permission_of: Callable[[str], str] = name_permission,
        finding_of: FindingOf = lambda request: Finding(),
    ) -> None:
        if not isinstance(allow_anonymous, bool) or (authorize is None) is not allow_anonymous:
            raise DashboardConfigError(
                f"{caller} needs a policy: give it either authorize=, a function of the action that returns whether "
                "it is allowed, or allow_anonymous=True, with which everybody can see and change all runs"
            )
        if authorize is not None and not callable(authorize):
            raise DashboardConfigError(f"{caller}: authorize= must be a function, not {authorize!r}")
        self._engine, self._authorize, self._raises = engine, authorize, raises
        self._permission_of, self._finding_of = permission_of, finding_of
        self._info: EngineInfo | None = None
        self._is_async = inspect.iscoroutinefunction(authorize) or inspect.iscoroutinefunction(
            getattr(authorize, "__call__", None)  # noqa: B004 (an object with an asynchronous method)
        )

    def admits(self, headers: Mapping[str, str]) -> bool:
        """Whether a request with these headers may have a body. Only a dashboard with a sign-in refuses some."""
        return True

    async def handle(self, request: DashboardRequest) -> DashboardResponse:
        """The answer to a request."""
        try:
            return _protected(await self._answer(request))
        except self._raises:
            raise
        except Exception as error:
            return await self.show_error(request, _as_page_error(request, error))

    async def show_error(self, request: DashboardRequest, error: PageError) -> DashboardResponse:
        """The answer to a request that is refused."""

        async def may_nothing(action: str, subject: str | None) -> bool:
            return False

        request, info = replace(request, query=""), self._info or EngineInfo(kind="")
        visit = Visit(self._engine, request, may_nothing, info=info)
        return _protected(await visit.page("error.html", status=error.status, error=error))

    async def _answer(self, request: DashboardRequest) -> DashboardResponse:
        if request.path.startswith(ASSETS):
            return _answer_static(request)
        if _UNUSUAL.search(request.path) is not None:
            raise _not_routed(request, frozenset())
        found = find_route(ROUTES, request.method, request.path)
        if isinstance(found, frozenset):
            raise _not_routed(request, found)
        route, arguments = found
        form = await self._check(request, route, arguments)
        if self._info is None:
            self._info = await self._engine.describe_engine()
        if not self._info.offers(route.needs or route.action):
            raise PageError(501, *_NOT_OFFERED)
        visit = Visit(
            self._engine,
            request,
            lambda action, subject: self._may(request, action, subject),
            info=self._info,
            finding=self._finding_of(request),
            arguments=arguments,
            form=form,
        )
        visit.live = await self._live_url(visit, route)
        return await route.handle(visit)

    async def _check(self, request: DashboardRequest, route: Route, arguments: Mapping[str, str]) -> dict[str, str]:
        """The fields of a form, which the person may send. Raises ``PageError``."""
        await self._require(request, VIEW, None)
        if route.method != "POST":
            return {}
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            raise PageError(415, "This is not a form", f"An action is a form of the type {_FORM}.")
        form = parse_fields(request.body.decode(errors="replace"))
        if (forgery := describe_forgery(request, form)) is not None:
            raise PageError(403, "The form was refused", forgery)
        await self._require(request, route.action, arguments[route.subject] if route.subject else None)
        return form

    async def _require(self, request: DashboardRequest, action: str, subject: str | None) -> None:
        if not await self._may(request, action, subject):
            raise PageError(
                403,
                "You are not allowed to do this",
                f"It needs {self._permission_of(action)}, which the operators of this app give.",
            )

    async def _may(self, request: DashboardRequest, action: str, subject: str | None) -> bool:
        if self._authorize is None:
            return True
        authorize, asked = self._authorize, Action(name=action, subject=subject, request=request.raw_request)
        try:
            if self._is_async:
                verdict = authorize(asked)
            else:
                verdict = await (request.call_blocking or asyncio.to_thread)(lambda: authorize(asked))
            if inspect.isawaitable(verdict):
                verdict = await verdict
        except self._raises:
            raise
        except Exception:
            # Its message may have details for developers only, whatever its class.
            _logger.exception("authorize= of the dashboard failed for the action %r", action)
            raise PageError(500, *_FAILED) from None
        if not isinstance(verdict, bool):
            raise TypeError(f"authorize= returned {type(verdict).__name__}: it must return True or False")
        return verdict

    async def _live_url(self, visit: Visit, route: Route) -> str | None:
        """The URL of the stream that updates the page of a route.

        ``None`` if the page is not live.
        """
        if route.live is Live.NOTHING or not visit.info.offers("wait_for_changes"):
            return None
        run_id = visit.arguments["run_id"] if route.live is Live.RUN else None
        # Before the page is read, so that a change during its reading updates it.
        changes = await self._engine.wait_for_changes(after=None, run_id=run_id)
        return visit.url("/live", after=changes.position, run=run_id)


class DashboardKeys(msgspec.Struct, frozen=True):
    """The keys of visitors of an engine's dashboard.

    With the ``viewer_key`` they see all, and change nothing. ``mount`` is the beginning of the dashboard's paths that a
    proxy removes. Raises ``DashboardConfigError`` for a key that could be guessed.
    """

    key: str
    viewer_key: str | None = None
    mount: str = ""

    def __post_init__(self) -> None:
        if min(len(each.strip()) for each in (self.key, self.viewer_key) if each is not None) < LEAST_KEY_LENGTH:
            raise DashboardConfigError(
                f"the dashboard's key must have {LEAST_KEY_LENGTH} characters or more, because it could be guessed "
                "otherwise: `durably keys --dashboard` makes one"
            )


class KeySignIn:
    """The dashboard of an engine in production, for visitors with a key.

    Browsers ask for it (HTTP Basic authentication, RFC 7617): it is the password, and the user's name is ignored. A
    proxy that signs users in can send it for them.
    """

    def __init__(self, engine: Engine, keys: DashboardKeys, finding_of: FindingOf) -> None:
        self._mount = keys.mount
        self._refusals = SparseLog(_logger)
        self._dashboard = Dashboard(engine, allow_anonymous=True, finding_of=finding_of)
        self._by_key = [(keys.key, self._dashboard)]
        if keys.viewer_key is not None:
            for_viewers = Dashboard(
                engine,
                authorize=lambda action: not action.is_change,
                permission_of=lambda action: f"the key of operators, for the action {action},",
                finding_of=finding_of,
            )
            self._by_key.append((keys.viewer_key, for_viewers))

    def admits(self, headers: Mapping[str, str]) -> bool:
        """Whether a request has a key."""
        return bool(self._find(_read_password(headers.get("authorization", ""))))

    def _find(self, password: bytes) -> list[Dashboard]:
        # Each key is compared, so that the time does not depend on which one is right.
        return [each for key, each in self._by_key if hmac.compare_digest(_as_bytes(key.strip()), password)]

    async def handle(self, request: DashboardRequest) -> DashboardResponse:
        """The answer to a request, which is 401 without a key."""
        request = replace(request, mount=self._mount)
        password = _read_password(request.headers.get("authorization", ""))
        found = self._find(password)
        if found or request.path.startswith(ASSETS):
            return await (found or [self._dashboard])[0].handle(request)
        if password:
            peer = printable(request.peer or "unknown")
            self._refusals.log(logging.WARNING, "a wrong key was given to the dashboard, from %s", peer)
        error = PageError(401, "You are not signed in", "The password is the key of the engine's dashboard.")
        response = await self._dashboard.show_error(request, error)
        challenge = ("www-authenticate", 'Basic realm="Durably", charset="UTF-8"')
        return replace(response, headers=[*response.headers, challenge])


def _read_password(authorization: str) -> bytes:
    """The password of an Authorization header, empty if there is none."""
    scheme, _, credentials = authorization.partition(" ")
    try:
        user_and_password = base64.b64decode(credentials, validate=True) if scheme.lower() == "basic" else b""
    except ValueError:
        return b""
    return user_and_password.partition(b":")[2]


def _as_bytes(key: str) -> bytes:
    return key.encode(errors="surrogateescape")


def _protected(response: DashboardResponse) -> DashboardResponse:
    return replace(response, headers=[*HEADERS.items(), *response.headers])


def _answer_static(request: DashboardRequest) -> DashboardResponse:
    version, _, name = request.path.removeprefix(ASSETS).partition("/")
    answer = answer_static(name, version)
    if answer is None or request.method not in ("GET", "HEAD"):
        raise _not_routed(request, frozenset())
    return answer


def _not_routed(request: DashboardRequest, methods: frozenset[str]) -> PageError:
    if methods:
        return PageError(405, "This cannot be done here", f"The page takes {', '.join(sorted(methods))} only.")
    return PageError(404, "There is no such page", "The address may be mistyped, or the page of another version.")


def _as_page_error(request: DashboardRequest, error: Exception) -> PageError:
    match error:
        case PageError():
            return error
        case ArgumentInvalidError():
            return PageError(400, "The request is not valid", str(error))
        case errors.EngineError():
            status, title = _STATUSES.get(type(error), (400, "The engine refuses this"))
            return PageError(status, title, error.message)
        case Error():
            return PageError(503, "The engine cannot answer", error.message)
    _logger.error("the dashboard failed to answer %s %s", request.method, request.path, exc_info=error)
    return PageError(500, *_FAILED)


# live updates


async def answer_live(visit: Visit) -> DashboardResponse:
    """Report each change after the position ``after``, of the run ``run`` or of all.

    The data of an event is its position. A comment shows that the stream is alive. If the server's worker may not wait,
    the stream ends at once, and the browser opens another after some seconds.
    """
    given = visit.request.headers.get("last-event-id") or visit.query.get("after", "")
    after = int(given) if given.isascii() and given.isdigit() and len(given) < 16 else None
    run_id, engine = visit.query.get("run"), visit.engine

    async def stream() -> AsyncGenerator[bytes, None]:
        position, ends = after, time.monotonic() + visit.request.stream_seconds
        yield f"retry: {_RETRY_MILLISECONDS}\n\n".encode()
        while (seconds := ends - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(seconds):
                    changes = await engine.wait_for_changes(after=position, run_id=run_id)
            except (TimeoutError, Error):  # It is closing, or has too many clients: the browser asks again.
                return
            yield _describe_position(position, changes.position)
            position = changes.position

    async def poll() -> AsyncGenerator[bytes, None]:
        changes = await engine.wait_for_changes(after=None, run_id=run_id)
        yield f"retry: {_POLL_MILLISECONDS}\n\n".encode() + _describe_position(after, changes.position)

    return DashboardResponse(
        status_code=200, headers=list(_STREAM_HEADERS), stream=stream if visit.request.may_wait else poll
    )


def _describe_position(before: int | None, position: int) -> bytes:
    return b": no change\n\n" if before == position else f"id: {position}\ndata: {position}\n\n".encode()


_ALL = (
    *overview.ROUTES,
    *runs.ROUTES,
    *run.ROUTES,
    *questions.ROUTES,
    *functions.ROUTES,
    *events.ROUTES,
    Route("GET", "/live", answer_live),
)
# Longer patterns first: an id of a function may contain slashes.
ROUTES = tuple(sorted(_ALL, key=lambda route: -route.pattern.count("/")))
SEGMENTS = first_segments(ROUTES) | {"", ASSETS.strip("/")}
"""The first parts of the paths that a dashboard answers.

For a server that has other paths too."""
