"""A plain HTTP client: one request, one answer, no retries, no redirects."""

import json
from collections.abc import Mapping
from typing import Any

import urllib3

from .. import wire

_pool = urllib3.PoolManager(maxsize=16, retries=False, timeout=urllib3.Timeout(total=30))


class Answer(wire.Answer):
    @property
    def ops(self) -> list[Any]:
        """The ops of an answer that reports steps."""
        assert self.status == 206, (self.status, self.body)
        ops: list[Any] = self.json
        return ops

    @property
    def output(self) -> Any:
        """The function's output: the body of a 200, or the data of the op ``RunComplete``."""
        if self.status == 206:
            (op,) = self.ops
            assert op["op"] == "RunComplete", op
            return op["data"]
        assert self.status == 200, (self.status, self.body)
        return self.json

    @property
    def inner(self) -> "Answer":
        """The answer inside a streamed one, or the answer itself."""
        if self.status != 201:
            return self
        content = self.json
        body = content["body"]
        text = body if isinstance(body, str) else json.dumps(body)
        return Answer(content["status"], urllib3.HTTPHeaderDict(content["headers"]), text.encode())


def request(method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
    sent = {"content-type": "application/json", **(headers or {})} if body is not None else dict(headers or {})
    response = _pool.request(method, url, body=body, headers=sent, redirect=False)
    return Answer(response.status, response.headers, response.data)
