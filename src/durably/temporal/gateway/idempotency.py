"""Idempotency keys, and the requests to the server that follow from them.

The server carries out a request once, by the request's id: it compares that of a start with the latest run of the
workflow's id, over or not, and that of a signal with those that the run has had. The client makes up an id for each
call and takes none; the requests of its raw service, which is public, have a place for it.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from pydantic_core import to_json
from temporalio.client import Client

from .messages import GatewayRequest
from .problems import bad_request

_CALLS = ("start_workflow_execution", "signal_with_start_workflow_execution", "signal_workflow_execution")

_request_id: ContextVar[str | None] = ContextVar("durably_request_id", default=None)


def idempotency_key(request: GatewayRequest) -> str | None:
    """Raises a problem."""
    key = request.headers.get("idempotency-key")
    if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        raise bad_request("Idempotency-Key is 1 to 255 visible ASCII characters")
    return key


def fingerprint(value: Any) -> str:
    """Of an input: a key that comes with another one is used wrongly."""
    return hashlib.sha256(to_json(value, fallback=str)).hexdigest()


@contextmanager
def one_request(client: Client, *parts: str | None) -> Iterator[None]:
    """Meanwhile starts and signals are, to the server, the same as others of the same workflow with these ``parts``.

    If one of them is ``None``, for there is no key, all are different as ever.
    """
    if None in parts:
        yield
        return
    _let_ids_be_chosen(client)
    token = _request_id.set(str(uuid5(NAMESPACE_OID, "\n".join(map(str, parts)))))
    try:
        yield
    finally:
        _request_id.reset(token)


def _let_ids_be_chosen(client: Client) -> None:
    service = client.workflow_service
    for name in _CALLS:
        call = getattr(service, name)
        if not isinstance(call, _Identified):
            setattr(service, name, _Identified(call))


class _Identified:
    """A call of the raw service, whose requests get the id that is chosen just now."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call

    def __call__(self, request: Any, **options: Any) -> Awaitable[Any]:
        request.request_id = _request_id.get() or request.request_id
        return self._call(request, **options)
