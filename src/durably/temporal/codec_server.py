"""A codec server, with which Temporal's web UI and CLI show encrypted payloads.

The protocol is ``POST …/encode`` and ``…/decode`` with ``{"payloads": [{"metadata": …, "data": …}]}``, the bytes in
Base64, and the namespace in ``X-Namespace`` (https://docs.temporal.io/production-deployment/data-encryption). Adapters
mount a ``CodecServer`` like a ``Gateway``. This module uses no framework.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import msgspec
from google.protobuf import json_format
from temporalio.api.common.v1 import Payloads
from temporalio.converter import PayloadCodec

from durably.execution import drive
from durably.io.http_client import IO, BlockingIO
from durably.protocol.text import printable
from durably.temporal.client.connection import Temporal
from durably.temporal.gateway.authorization import Guard, check_principal
from durably.temporal.gateway.messages import JSON, has_more_values
from durably.temporal.gateway.problems import (
    Problem,
    bad_request,
    not_found,
    to_problem,
    too_large,
    too_many_values,
)

from .errors import PayloadEncryptionError, TemporalSettingsError
from .gateway import GatewayRequest, GatewayResponse

Codecs = Temporal | Sequence[Temporal] | PayloadCodec | Mapping[str, PayloadCodec]

_logger = logging.getLogger("durably.temporal")
_HEADERS = "Authorization, Authorization-Extras, Content-Type, X-Namespace"
_HEADER_LIST = re.compile(r"[A-Za-z0-9-]+( *, *[A-Za-z0-9-]+){0,30}")
_PREFLIGHT_SECONDS = "600"
_VALUES_OF_PAYLOAD = 10
"""Average elements of lists and objects for each payload of a body, including some metadata."""


class CodecOperation(StrEnum):
    ENCODE = "encode"
    DECODE = "decode"


@dataclass(frozen=True, kw_only=True)
class CodecAction:
    """An operation that a principal requests from the codec server.

    ``namespace`` is that of ``X-Namespace``. It has a codec; a single ``PayloadCodec`` serves all namespaces.
    ``principal`` and ``request`` are as in ``Action``.
    """

    operation: CodecOperation
    namespace: str | None
    principal: Any
    request: Any


AuthorizeCodec = Callable[[CodecAction], bool | Awaitable[bool]]


class CodecServer:
    """``POST /encode`` and ``POST /decode`` for Temporal's web UI and CLI.

    - ``codecs``: the app's ``Temporal``, for its own namespace; several of them, with the first one for requests
      without a namespace; a ``PayloadCodec``; or a mapping of namespaces to codecs.
    - ``origins``: origins of the web UI, such as ``https://temporal.example.com``. Only their pages can call the server
      with cookies and credentials.
    - ``authorize``: gets a ``CodecAction`` and returns whether it is allowed, or raises ``Unauthenticated``. A refused
      principal gets 403, or 401 if it is anonymous.
    - ``allow_anonymous=True`` instead of ``authorize``: all clients can read encrypted payloads.
    - ``max_body``: in bytes.

    Raises ``TemporalSettingsError``.
    """

    def __init__(
        self,
        codecs: Codecs,
        *,
        origins: Sequence[str] = (),
        authorize: AuthorizeCodec | None = None,
        allow_anonymous: bool = False,
        max_body: int = 8 * 1024 * 1024,
        max_payloads: int = 10_000,
    ) -> None:
        self._guard = Guard(authorize, allow_anonymous, server="CodecServer", permission="read encrypted payloads")
        self.allow_anonymous = allow_anonymous
        self.max_body = max_body
        self._max_payloads = max_payloads
        self._codecs = codecs
        self._origins = frozenset(_check_origin(origin) for origin in origins)

    def check(self) -> None:
        """Raises ``TemporalSettingsError`` for a connection without a codec, or with an invalid setting."""
        if not isinstance(self._codecs, (PayloadCodec, Mapping)):
            for each in [self._codecs] if isinstance(self._codecs, Temporal) else self._codecs:
                _codec_of(each)

    async def handle(self, request: GatewayRequest, *, io: IO | None = None) -> GatewayResponse:
        """The response to a request. It does not raise for errors of clients."""
        try:
            response = await self._respond(request, io)
        except PayloadEncryptionError as error:
            # Not in the response: the message contains names of keys and details of the payload.
            _logger.warning("The codec server cannot read payloads of a request: %s", printable(error)[:1000])
            response = bad_request("a payload cannot be decoded").response()
        except Exception as error:
            response = to_problem(error).response()
        return replace(response, headers={**response.headers, **self._cors(request)})

    def handle_sync(self, request: GatewayRequest) -> GatewayResponse:
        """``handle`` for threads."""
        return drive(self.handle(request, io=BlockingIO()))

    def check_length(self, length: int | None) -> None:
        """Raises a problem for a body over the limit. Adapters call it before they read."""
        if length is not None and length > self.max_body:
            raise too_large(self.max_body)

    def refuse(self, method: str, path: str, problem: Problem) -> GatewayResponse:
        """For adapters: the response to a request that the framework refuses."""
        return problem.response()

    async def _respond(self, request: GatewayRequest, io: IO | None) -> GatewayResponse:
        try:
            operation = CodecOperation(request.path.strip("/"))
        except ValueError:
            raise not_found("the codec server has /encode and /decode") from None
        self._check_origin_of(request)
        if request.method == "OPTIONS":
            return GatewayResponse(status_code=HTTPStatus.NO_CONTENT, headers=self._preflight(request))
        if request.method != "POST":
            raise Problem(
                HTTPStatus.METHOD_NOT_ALLOWED, "method-not-allowed", "use POST here", headers={"Allow": "OPTIONS, POST"}
            )
        self.check_length(len(request.body))
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "no-json", "send JSON, as application/json")
        namespace = request.headers.get("x-namespace") or None
        if not self._guard.is_open:
            principal = check_principal(request.principal)
            action = CodecAction(
                operation=operation, namespace=namespace, principal=principal, request=request.raw_request
            )
            await self._guard.check(action, io, request.call_blocking)
        codec = self._find_codec(namespace)
        payloads = self._parse(request.body).payloads
        work = codec.encode if operation is CodecOperation.ENCODE else codec.decode
        done = Payloads(payloads=await (work(payloads) if io is None else io.resolve(work(payloads))))
        body = msgspec.json.encode({"payloads": [json_format.MessageToDict(each) for each in done.payloads]})
        return GatewayResponse(
            status_code=HTTPStatus.OK, headers={"Content-Type": JSON, "Cache-Control": "no-store"}, body=body
        )

    def _find_codec(self, namespace: str | None) -> PayloadCodec:
        """Raises a problem, and ``TemporalSettingsError`` for a connection without a codec."""
        codecs = self._codecs
        if isinstance(codecs, PayloadCodec):
            return codecs
        if isinstance(codecs, Mapping):
            found = codecs.get(namespace or "")
        else:
            several = [codecs] if isinstance(codecs, Temporal) else codecs
            found = next((_codec_of(each) for each in several if namespace in (None, each.settings.namespace)), None)
        if found is None:
            raise not_found("there is no codec for the namespace in X-Namespace")
        return found

    def _parse(self, body: bytes) -> Payloads:
        """Raises a problem."""
        if has_more_values(body, _VALUES_OF_PAYLOAD * self._max_payloads):
            raise too_many_values(_VALUES_OF_PAYLOAD * self._max_payloads)
        try:
            given = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError):
            raise bad_request("the body is not valid JSON") from None
        listed = given.get("payloads") if isinstance(given, dict) else None
        if not isinstance(listed, list):
            raise bad_request('the body must be {"payloads": [{"metadata": {…}, "data": …}]}')
        if len(listed) > self._max_payloads:
            raise bad_request(f"the body has more than {self._max_payloads} payloads")
        try:
            return json_format.ParseDict(given, Payloads(), max_recursion_depth=20)
        except (json_format.ParseError, ValueError, TypeError, RecursionError):
            raise bad_request("a payload must be an object with metadata and data, their bytes in Base64") from None

    def _check_origin_of(self, request: GatewayRequest) -> None:
        """Raises a problem for a page of another origin. The CLI sends no ``Origin``."""
        origin = request.headers.get("origin")
        if origin is None or origin in self._origins or request.headers.get("sec-fetch-site") == "same-origin":
            return
        shown = printable(origin)[:200]
        detail = f"pages of {shown} may not use the codec server: if it is Temporal's web UI, add it to origins="
        raise Problem(HTTPStatus.FORBIDDEN, "forbidden-origin", detail)

    def _preflight(self, request: GatewayRequest) -> dict[str, str]:
        if "origin" not in request.headers:
            return {"Allow": "OPTIONS, POST"}
        # The headers of the web UI depend on its version.
        asked = request.headers.get("access-control-request-headers", "")
        return {
            "Allow": "OPTIONS, POST",
            "Access-Control-Allow-Methods": "POST",
            "Access-Control-Allow-Headers": asked if _HEADER_LIST.fullmatch(asked) else _HEADERS,
            "Access-Control-Max-Age": _PREFLIGHT_SECONDS,
        }

    def _cors(self, request: GatewayRequest) -> dict[str, str]:
        """Headers of all responses: without them, a page cannot read problems."""
        origin = request.headers.get("origin")
        if origin not in self._origins:
            return {"Vary": "Origin"}
        return {
            "Access-Control-Allow-Origin": str(origin),
            "Access-Control-Allow-Credentials": "true",
            "Vary": "Origin",
        }


def _codec_of(connection: Temporal) -> PayloadCodec:
    if (found := connection.data_converter.payload_codec) is None:
        name = "" if connection.name is None else f' "{connection.name}"'
        raise TemporalSettingsError(
            f"the codec server has nothing to decode with: the connection{name} to the namespace "
            f'"{connection.settings.namespace}" has no codec. Set {connection.variable_prefix}ENCRYPTION_KEYS, or give '
            "Temporal(encryption=…) or CodecServer a codec, such as durably.temporal.encryption.EncryptionCodec"
        )
    return found


def _check_origin(origin: str) -> str:
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
        raise TemporalSettingsError(
            f"CodecServer(origins=…): {origin!r} is not an origin. Write the scheme, host and port of Temporal's web "
            "UI without a path, such as https://temporal.example.com"
        )
    if not parts.hostname or "*" in parts.netloc:
        raise TemporalSettingsError(f"CodecServer(origins=…): {origin!r} must name one host; list each origin")
    return origin.lower()
