"""Requests and responses of the dashboard, in no framework's terms."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

CallBlocking = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls a function that may block its thread, and returns its result."""


@dataclass(frozen=True, kw_only=True)
class DashboardRequest:
    """A request as an adapter passes it on.

    ``path`` follows the dashboard's mount point ``mount`` (``""`` or ``"/durably"``), begins with a slash and is
    percent-decoded. ``query`` is the undecoded query string without the question mark. Names of ``headers`` are in
    lower case. ``is_secure``: the browser uses HTTPS. ``raw_request`` is the framework's own request, for
    ``authorize``. ``call_blocking`` runs a synchronous ``authorize`` in a thread of the framework; by default in any
    thread. ``peer`` is the address of the client or of the last proxy. ``stream_seconds`` is how long a stream may
    last before the browser opens another, so that one without a reader is not kept; 0 if the server's worker cannot
    answer others during that time (WSGI). ``sign_out`` is the path of the form that ends the visitor's session, if
    there is one.
    """

    method: str
    path: str
    mount: str
    headers: Mapping[str, str]
    query: str = ""
    body: bytes = b""
    is_secure: bool = False
    raw_request: Any = field(default=None, repr=False)
    call_blocking: CallBlocking | None = field(default=None, repr=False)
    peer: str | None = None
    stream_seconds: float = 300.0
    sign_out: str | None = None

    @property
    def may_wait(self) -> bool:
        return self.stream_seconds > 0


@dataclass(frozen=True, kw_only=True)
class DashboardResponse:
    """Status, headers and a body; or ``stream``, which yields chunks of a body.

    ``headers`` is a list, since cookies need a header each.
    """

    status_code: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    stream: Callable[[], AsyncGenerator[bytes, None]] | None = None


@dataclass(frozen=True, kw_only=True)
class Action:
    """The argument of ``authorize``: what a person is about to do.

    ``name`` is ``"view"``, or the name of the engine's operation: ``"cancel_run"``, ``"rerun"``, ``"receive_events"``,
    ``"invoke"``, ``"pause_function"``, ``"resume_function"``, ``"skip_delays"``, ``"cancel_runs"``, ``"replay_runs"``,
    ``"delete_cancellation"``. ``subject`` is the id of the run or function that it changes. ``request`` is the
    framework's own request.
    """

    name: str
    request: Any
    subject: str | None = None

    @property
    def is_change(self) -> bool:
        return self.name != "view"
