"""A request and a response of the gateway, without a framework."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Protocol

from pydantic import BaseModel

JSON = "application/json"

CallBlocking = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls what may block the thread that it runs in, and is awaited for what that returns."""


async def call_here(function: Callable[[], Any]) -> Any:
    """Calls it in the thread of a request."""
    return function()


@dataclass(kw_only=True)
class GatewayRequest:
    """A request as adapters hand it over.

    ``path`` is what follows the gateway's mount point ``mount`` (``/api``), percent-decoded; ``headers`` may be in any
    case. ``query_params`` maps names to a text or a list of texts, or is a framework's multi-dictionary (with
    ``getlist`` or ``getall``), so that parameters that are given twice are found. ``principal`` is who asks, as the
    framework knows it; ``raw_request`` is the framework's own. ``call_blocking`` runs a synchronous hook, for
    frameworks on an event loop that have threads of their own for that; any thread is used unless given. ``secrets``
    are the framework's own, the present one first and then former ones: page tokens are signed with a key that is
    derived from them, unless the gateway has a secret of its own. ``app_parameters`` are query parameters that the app
    itself reads.
    """

    method: str
    path: str
    mount: str
    headers: Mapping[str, str]
    query_params: Mapping[str, str] | Mapping[str, Sequence[str]]
    body: bytes
    raw_request: Any
    principal: Any = None
    call_blocking: CallBlocking | None = None
    secrets: Sequence[str | bytes] = field(default=(), repr=False)
    app_parameters: Collection[str] = ()

    def __post_init__(self) -> None:
        self.headers = {name.lower(): value for name, value in self.headers.items()}
        self._query = {name: _values_of(self.query_params, name) for name in self.query_params}

    def query(self, name: str) -> str | None:
        values = self._query.get(name)
        return values[0] if values else None

    def query_names(self) -> list[str]:
        return list(self._query)

    def is_repeated(self, name: str) -> bool:
        return len(self._query.get(name, ())) > 1


def _values_of(params: Any, name: str) -> Sequence[str]:
    """All values of a query parameter. ``params[name]`` of a multi-dictionary is one of them: the first one of
    Werkzeug's, the last one of Starlette's and Django's."""
    for method in ("getlist", "getall"):
        if hasattr(params, method):
            return list(getattr(params, method)(name))
    value = params[name]
    return [value] if isinstance(value, str) else list(value)


@dataclass(kw_only=True)
class GatewayResponse:
    """Status, headers and a body; or ``stream``, which gives the chunks of a body that has no end yet."""

    status_code: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: Callable[[], AsyncGenerator[bytes, None]] | None = None


class RequestHandler(Protocol):
    """What adapters mount: the gateway, and the codec server."""

    async def handle(self, request: GatewayRequest) -> GatewayResponse: ...

    def handle_sync(self, request: GatewayRequest) -> GatewayResponse: ...

    def check_length(self, length: int | None) -> None:
        """Raises a problem for a body of more bytes than are read."""

    def refuse(self, method: str, path: str, problem: Any) -> GatewayResponse: ...


_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def is_of_another_site(headers: Mapping[str, str]) -> bool:
    """Whether the browser reports that a page of another site sends the request. ``headers`` have lower-case names.

    Browsers send ``Sec-Fetch-Site`` over HTTPS and to localhost only. Without it, ``Origin`` is compared with the host
    that was asked, which a proxy may have put into ``X-Forwarded-Host``.
    """
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    if (origin := headers.get("origin")) is None:
        return False
    scheme, _, asking = origin.lower().partition("://")
    asked = (headers.get("host", ""), *headers.get("x-forwarded-host", "").split(","))
    # Origins leave the default port out.
    hosts = {host.strip().lower().removesuffix(_DEFAULT_PORTS.get(scheme, "")) for host in asked}
    return not asking or asking not in hosts


def without_body(response: GatewayResponse) -> GatewayResponse:
    """The answer to HEAD: the headers that GET would get, with the length of its body if that is known."""
    if response.stream is not None:
        return replace(response, stream=_no_chunks)
    headers = {**response.headers, "Content-Length": str(len(response.body))}
    return replace(response, headers=headers, body=b"")


async def _no_chunks() -> AsyncGenerator[bytes, None]:
    chunks: tuple[bytes, ...] = ()
    for chunk in chunks:
        yield chunk


def answer(body: BaseModel, status: HTTPStatus = HTTPStatus.OK, **headers: str) -> GatewayResponse:
    """A body as JSON. Names of headers are given with underscores. Nothing of a workflow may be cached."""
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return GatewayResponse(
        status_code=status,
        headers={"Content-Type": JSON, "Cache-Control": "no-store", **named},
        body=body.model_dump_json(fallback=str).encode(),
    )
