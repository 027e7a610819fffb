"""The id of a web request, passed to the workflow and the activities.

The workflow is the one that the request starts, and the activities are that workflow's. The id is kept in a context
variable within a process, and in a header of Temporal's calls between processes. The header is not encrypted, because
an id is not a secret.
"""

import logging
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadConverter

HEADER = "durably-request-id"
"""The header of starts, activities, child workflows and continued workflows."""

HTTP_HEADER = "X-Request-ID"
_USABLE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

request_id: ContextVar[str | None] = ContextVar("durably_request_id", default=None)


def current_request_id() -> str | None:
    """The id of the current web request.

    In an activity, it is the id of the request that started the activity's workflow.
    """
    return request_id.get()


@contextmanager
def web_request(id: str | None) -> Iterator[None]:
    """Give this id to workflows that start within ``with``.

    It is for an app that creates request ids itself.
    """
    token = request_id.set(id)
    try:
        yield
    finally:
        request_id.reset(token)


def usable_request_id(given: str | None) -> str | None:
    """The value of ``X-Request-ID`` if it is short printable text, else ``None``."""
    return given if given is not None and _USABLE.fullmatch(given) else None


def choose_request_id(given: str | None) -> str:
    """The id of a request: ``X-Request-ID`` if it is usable, else a new one."""
    return usable_request_id(given) or uuid.uuid4().hex


class RequestIdFilter(logging.Filter):
    """Gives records ``request_id``.

    It is ``None`` outside of requests and activities.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request_id"):
            record.request_id = request_id.get()
        return True


def with_request_id(headers: Mapping[str, Payload], id: str | None) -> Mapping[str, Payload]:
    """The headers, with the id if there is one and they have none."""
    if id is None or HEADER in headers:
        return headers
    return {**headers, HEADER: PayloadConverter.default.to_payload(id)}


def read_request_id(headers: Mapping[str, Payload]) -> str | None:
    """The id in the headers, or ``None`` if there is none that can be read."""
    payload = headers.get(HEADER)
    if payload is None:
        return None
    try:
        id = PayloadConverter.default.from_payload(payload)
    except Exception:
        return None  # The header of another program with the same name.
    return usable_request_id(id) if isinstance(id, str) else None
