"""Requests and responses of web frameworks: one module for each framework.

``serve``, the dashboard and the gateway to Temporal use them, so that the code for a framework is in one module. The
modules read bodies up to a limit, find the mount point, route all paths and methods below it, and write responses.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from typing import Any, Protocol

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
"""Methods that a server below a mount point answers, so that an unsupported one has the same response in each
framework.
"""


class ServerResponse(Protocol):
    """A response of the gateway, the dashboard or ``CommHandler``.

    ``headers`` is a mapping, or a list of pairs in which a name may be repeated. ``stream`` yields the chunks of a
    body.
    """

    @property
    def status_code(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str] | list[tuple[str, str]]: ...

    @property
    def body(self) -> bytes: ...

    @property
    def stream(self) -> Callable[[], AsyncGenerator[bytes, None]] | None: ...


def lower_headers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers of a request by their names in lower case.

    Values of a repeated name are joined.
    """
    found: dict[str, str] = {}
    for name, value in pairs:
        lower = name.lower()
        separator = "; " if lower == "cookie" else ", "
        found[lower] = f"{found[lower]}{separator}{value}" if lower in found else value
    return found


def header_pairs(response: ServerResponse) -> Iterable[tuple[str, str]]:
    headers: Any = response.headers
    return headers.items() if isinstance(headers, Mapping) else headers
