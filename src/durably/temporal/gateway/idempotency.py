"""Idempotency keys, and the requests to the server that follow from them.

The server carries out a request once, by the request's id: it compares that of a start with the latest run of the
workflow's id, over or not, and that of a signal with those that the run has had.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from pydantic_core import to_json
from temporalio.client import Client

from durably.temporal.compat import request_id

from .messages import GatewayRequest
from .problems import bad_request


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
    with request_id(client, str(uuid5(NAMESPACE_OID, "\n".join(map(str, parts))))):
        yield
