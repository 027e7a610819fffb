"""Requests and responses of the gateway, independent of frameworks."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import quote

from pydantic import BaseModel

from .models import Links, UserBody

JSON = "application/json"

CallBlocking = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls a function that may block its thread, and returns its result."""


@dataclass(kw_only=True)
class GatewayRequest:
    """A request as an adapter passes it on.

    - ``path``: follows the gateway's mount point ``mount`` (``/api``), percent-decoded.
    - ``headers``: in any case.
    - ``query_params``: maps names to a string or a list of strings, or is a framework's multi-dictionary (with
      ``getlist`` or ``getall``): a repeated parameter must be visible.
    - ``principal``: the user as the framework provides it.
    - ``raw_request``: the framework's own request.
    - ``call_blocking``: runs a synchronous hook in a thread of the framework; by default in any thread.
    - ``secrets``: the framework's own, the current one first. Unless the gateway has a secret, page tokens are signed
      with a key that is derived from them.
    - ``app_parameters``: names of query parameters that the app itself reads.
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
        """The first value of a query parameter."""
        values = self._query.get(name)
        return values[0] if values else None

    def query_names(self) -> list[str]:
        return list(self._query)

    def is_repeated(self, name: str) -> bool:
        return len(self._query.get(name, ())) > 1

    def location(self, place: str, id: str) -> str:
        """The path of a workflow or schedule; ``place`` is the exposure's name."""
        return f"{self.mount}/{place}/{quote(id, safe='')}"


def _values_of(params: Any, name: str) -> Sequence[str]:
    """All values of a query parameter.

    ``params[name]`` of a multi-dictionary is only one of them: the first one of Werkzeug's, the last one of
    Starlette's and Django's.
    """
    for method in ("getlist", "getall"):
        if hasattr(params, method):
            return list(getattr(params, method)(name))
    value = params[name]
    return [value] if isinstance(value, str) else list(value)


@dataclass(kw_only=True)
class GatewayResponse:
    """Status, headers and a body; or ``stream``, which yields chunks of a body."""

    status_code: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: Callable[[], AsyncGenerator[bytes, None]] | None = None


class RequestHandler(Protocol):
    """A server that adapters mount: the gateway or the codec server."""

    async def handle(self, request: GatewayRequest) -> GatewayResponse: ...

    def handle_sync(self, request: GatewayRequest) -> GatewayResponse: ...

    def check_length(self, length: int | None) -> None:
        """Raises a problem for a body that is longer than the limit."""

    def refuse(self, method: str, path: str, problem: Any) -> GatewayResponse: ...


def answer(
    body: BaseModel, status: HTTPStatus = HTTPStatus.OK, *, is_replay: bool = False, **headers: str
) -> GatewayResponse:
    """A response with a JSON body. Names of headers are given with underscores.

    It is never cached. ``is_replay`` marks the response of an earlier request with the same idempotency key.
    """
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    if is_replay:
        named["Idempotent-Replayed"] = "true"
    return GatewayResponse(
        status_code=status,
        headers={"Content-Type": JSON, "Cache-Control": "no-store", **named},
        body=to_json(body),
    )


def to_json(body: BaseModel) -> bytes:
    """A body as JSON, without empty fields, except in users' own values."""
    return body.model_dump_json(exclude_none=not isinstance(body, UserBody), fallback=str).encode()


def links_to(location: str) -> Links:
    """Links of a workflow. ``location`` is its path."""
    return Links(self=location, result=f"{location}/result", events=f"{location}/events")


def without_body(response: GatewayResponse) -> GatewayResponse:
    """The response to HEAD: the headers of GET, with the length if it is known."""
    if response.stream is not None:
        return replace(response, stream=_no_chunks)
    headers = {**response.headers, "Content-Length": str(len(response.body))}
    return replace(response, headers=headers, body=b"")


async def _no_chunks() -> AsyncGenerator[bytes, None]:
    chunks: tuple[bytes, ...] = ()
    for chunk in chunks:
        yield chunk


_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
"""A JSON string. An unterminated one extends to the end of the document, so that the search is linear."""


def has_more_values(body: bytes, limit: int) -> bool:
    """Whether a JSON document has more than ``limit`` elements.

    Pydantic collects an error for each wrong element: a million of them cost a second and 400 MB.
    """
    return body.count(b",") >= limit and _STRING.sub(b"", body).count(b",") >= limit
