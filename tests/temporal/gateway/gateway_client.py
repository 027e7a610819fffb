"""Requests to a gateway object, without a framework."""

import json
from typing import Any

from durably.temporal.gateway import Gateway, GatewayRequest, GatewayResponse


class Answer:
    """A response with its JSON body."""

    def __init__(self, response: GatewayResponse) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.json: Any = json.loads(response.body) if response.body else None


def make_request(user: Any, method: str, path: str, body: Any = None, /, **query: Any) -> GatewayRequest:
    """A request of ``user`` with a body of bytes or JSON.

    Parameters that begin with ``h_`` are headers; ``key`` is the idempotency key.
    """
    headers = {name[2:].replace("_", "-"): value for name, value in query.items() if name.startswith("h_")}
    if (key := query.pop("key", None)) is not None:
        headers["idempotency-key"] = key
    return GatewayRequest(
        method=method,
        path=path,
        mount="/api",
        headers={"content-type": "application/json", **headers},
        query_params={name: value for name, value in query.items() if not name.startswith("h_")},
        body=body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode(),
        raw_request=None,
        principal=user,
    )


def get(path: str) -> GatewayRequest:
    return make_request(None, "GET", path)


async def ask(gateway: Gateway, user: Any, method: str, path: str, body: Any = None, /, **query: Any) -> Answer:
    return Answer(await gateway.handle(make_request(user, method, path, body, **query)))
