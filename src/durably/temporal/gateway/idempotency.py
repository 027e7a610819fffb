"""Idempotency keys, and the requests to the server that follow from them.

A key counts for one principal, workflow type, operation and handler: that is its scope. The server carries out a
request once, by the request's id, which is made of the scope: it compares that of a start with the latest run of the
workflow's id, over or not, and that of a signal or update with those that the run has had. It compares no inputs, so
the gateway keeps a fingerprint of the input with the request: a start's in the memo, the others' in their headers.

Neither names the principal, the key or the input: scope and fingerprint are hashes, and the key goes into both.
"""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from pydantic_core import to_json
from temporalio.api.common.v1 import Header, Payload
from temporalio.client import Client

from durably.temporal.compat import request_id

from .messages import GatewayRequest
from .problems import Problem, bad_request

HEADER = "durably-idempotency"
"""Of a signal's or update's headers in the history."""


@dataclass(frozen=True)
class KeyedRequest:
    """A request with an ``Idempotency-Key``. ``nonce`` tells it from its own repetitions."""

    scope: str
    fingerprint: str
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def id(self) -> str:
        """The request's id on the server, and the id that a workflow or update gets if it has no other."""
        return str(uuid5(NAMESPACE_OID, self.scope))

    @property
    def mark(self) -> dict[str, str]:
        """What a workflow that it starts keeps in its memo."""
        return {"key": self.scope, "input": self.fingerprint}

    def header(self) -> Payload:
        content = {**self.mark, "request": self.nonce}
        return Payload(metadata={"encoding": b"json/plain"}, data=json.dumps(content).encode())

    def is_repeated_by(self, header: Header) -> bool | None:
        """Whether a signal or update of the history came with this key before; ``None`` for any other.

        ``False`` for the one that this very request has made. Raises a problem for another input.
        """
        if HEADER not in header.fields:
            return None
        stored = json.loads(header.fields[HEADER].data)
        if stored.get("key") != self.scope:
            return None
        self.check_input(stored)
        return bool(stored.get("request") != self.nonce)

    def check_input(self, stored: Mapping[str, Any]) -> None:
        """Raises a problem if the stored request with this key had another input."""
        if stored.get("input") != self.fingerprint:
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "this Idempotency-Key came with another input before",
            )


def keyed_request(
    request: GatewayRequest, principal_key: Callable[[], str], place: tuple[str, str, str], value: Any
) -> KeyedRequest | None:
    """``place`` is workflow type, operation and handler. ``None`` for a request without a key. Raises a problem."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        raise bad_request("Idempotency-Key is 1 to 255 visible ASCII characters")
    parts = json.dumps([principal_key(), *place, key]).encode()
    # The fingerprint is keyed, so that a reader of the history cannot guess the input without the client's key.
    fingerprint = hmac.new(parts, to_json(value, fallback=str), hashlib.sha256).hexdigest()
    return KeyedRequest(hashlib.sha256(parts).hexdigest(), fingerprint)


@contextmanager
def one_request(client: Client, keyed: KeyedRequest | None) -> Iterator[None]:
    """Meanwhile starts, signals and updates are the same to the server as others of the workflow with this key."""
    if keyed is None:
        yield
        return
    with request_id(client, keyed.id, {HEADER: keyed.header()}):
        yield
