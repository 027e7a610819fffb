"""What all requests of a gateway share: limits, metrics, open streams, and keys of page tokens."""

import base64
import hashlib
import hmac
import os
import secrets as randomness
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from weakref import WeakSet

import msgspec
from temporalio.common import MetricMeter

from durably.temporal.client.connection import GATEWAY_LATENCY, Temporal
from durably.temporal.errors import TemporalSettingsError

from .authorization import Identify
from .endpoints import Endpoint
from .problems import RETRY_AFTER, Problem, bad_request, logger


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a gateway.

    - ``rpc_timeout``: for each request to the server.
    - ``max_wait``: maximum wait for a result, in seconds.
    - ``max_body``: bytes of a request.
    - ``max_values``: elements of lists and objects in a request, at all levels.
    - ``stream_limit``: seconds for which an event stream is open.
    - ``keep_alive``: maximum silence of a stream, in seconds.
    - ``max_streams``: streams of a principal in each process.
    """

    rpc_timeout: timedelta = timedelta(seconds=10)
    max_wait: float = 60.0
    max_body: int = 2 * 1024 * 1024
    max_values: int = 100_000
    stream_limit: float = 600.0
    keep_alive: float = 5.0
    max_streams: int = 100


class Metrics:
    """Metrics of requests, for ``Temporal.serve_metrics``.

    It is created before a fork. Each process has its own meter, with instruments of its own.
    """

    def __init__(self, temporal: Temporal) -> None:
        self._temporal = temporal
        self._lock = threading.Lock()
        self._meter: MetricMeter | None = None
        self._held = Counter[Endpoint]()

    def count(self, endpoint: Endpoint | None, status: int, start: float) -> None:
        """Count a response. ``start`` is the ``time.perf_counter()`` of the request."""
        self._make_instruments()
        place = ("unmatched", "") if endpoint is None else (endpoint.label, endpoint.workflow_type)
        labels = {"route": place[0], "workflow_type": place[1], "status": str(int(status))}
        self._requests.add(1, labels)
        self._latency.record(timedelta(seconds=time.perf_counter() - start), labels)

    @contextmanager
    def waiting(self, endpoint: Endpoint) -> Iterator[None]:
        """A context in which a request waits for a workflow."""
        self._make_instruments()
        labels = {"route": endpoint.label, "workflow_type": endpoint.workflow_type}
        self._hold(endpoint, 1, labels)
        try:
            yield
        finally:
            self._hold(endpoint, -1, labels)

    def _hold(self, endpoint: Endpoint, more: int, labels: Mapping[str, str]) -> None:
        with self._lock:
            self._held[endpoint] += more
            self._waiting.set(self._held[endpoint], labels)

    def _make_instruments(self) -> None:
        try:
            meter = self._temporal.meter
        except TemporalSettingsError:
            meter = MetricMeter.noop  # The connection reports the error.
        if meter is self._meter:
            return
        self._requests = meter.create_counter("durably_gateway_requests", "Requests with a response.")
        self._latency = meter.create_histogram_timedelta(
            GATEWAY_LATENCY, "From a request to its response, or to the start of its stream.", "duration"
        )
        self._waiting = meter.create_gauge("durably_gateway_waiting", "Open long polls and streams.")
        self._meter = meter


@dataclass(frozen=True, eq=False)
class StreamSlot:
    """An open stream, until it is released or collected: some streams are never closed."""

    principal_key: str


class StreamSlots:
    """The open streams of this process, of which each principal may have ``limit``. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open = WeakSet[StreamSlot]()

    def take(self, principal_key: str) -> StreamSlot:
        """Count a stream. Raises the problem 429 for one too many."""
        with self._lock:
            if sum(slot.principal_key == principal_key for slot in self._open) >= self._limit:
                raise Problem(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    "too-many-streams",
                    f"{self._limit} event streams are open, the maximum for one principal: close one, or raise "
                    "Limits(max_streams=…) in the app",
                    headers={"Retry-After": RETRY_AFTER},
                    limit=self._limit,
                )
            slot = StreamSlot(principal_key)
            self._open.add(slot)
            return slot

    def release(self, slot: StreamSlot) -> None:
        with self._lock:
            self._open.discard(slot)


# Page tokens: the server's ``next_page_token``, signed and bound to one request
#
# The server accepts its tokens with any query, so a token of one query could reveal the results of another. A token of
# the gateway is valid only for the same principal, exposure, operation, query and workflow.

Secret = str | bytes

VARIABLE = "TEMPORAL_GATEWAY_SECRET"
_MINIMUM_BYTES = 16
_CONTEXT = b"durably: page tokens of the Temporal gateway, 1"
"""Context of a derived key: a token reveals nothing about other signatures with the app's secret."""


class PageTokens:
    """Keys of page tokens.

    They are derived from the first available secret: ``secret``, ``TEMPORAL_GATEWAY_SECRET``, the framework's secrets,
    or a random secret of this process. Raises ``TemporalSettingsError`` for a short secret.
    """

    def __init__(self, secret: Secret | None = None) -> None:
        name, given = ("Gateway(secret=…)", secret) if secret is not None else (VARIABLE, os.environ.get(VARIABLE))
        if given is not None and len(given) < _MINIMUM_BYTES:
            raise TemporalSettingsError(
                f"{name} is shorter than {_MINIMUM_BYTES} characters: use a random one, such as the output of "
                "python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        self._keys = [] if given is None else _keys([given])
        self._random_key = randomness.token_bytes(32)
        self._has_warned = False

    def of(self, scope: Sequence[str], framework_secrets: Sequence[Secret] = ()) -> "Pages":
        """The page tokens of one request, which are bound to ``scope``.

        The first of the framework's secrets signs. Tokens of the others, former secrets, are still accepted.
        """
        keys = self._keys or _keys(framework_secrets)
        if not keys and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the gateway has no secret to sign next_page with: pages are valid only in this process, until it "
                "ends; set Gateway(secret=…) or the environment variable %s, to the same string of %s characters or "
                "more in each process",
                *(VARIABLE, _MINIMUM_BYTES),
            )
        return Pages(hashlib.sha256(msgspec.json.encode(list(scope))).digest(), keys or [self._random_key])


def _keys(secrets: Sequence[Secret]) -> list[bytes]:
    encoded = [secret.encode() if isinstance(secret, str) else secret for secret in secrets]
    return [hmac.digest(secret, _CONTEXT, "sha256") for secret in encoded if secret]


@dataclass(frozen=True)
class Pages:
    """The page tokens of one request."""

    _scope: bytes
    _keys: Sequence[bytes]

    def give(self, token: bytes | None) -> str | None:
        """``next_page`` for a token of the server; ``None`` after the last page."""
        if not token:
            return None
        return base64.urlsafe_b64encode(self._mac(self._keys[0], token) + token).decode()

    def take(self, text: str | None) -> bytes | None:
        """The server's token in ``next_page``; ``None`` without one. Raises a problem."""
        if not text:
            return None
        try:
            decoded = base64.b64decode(text, altchars=b"-_", validate=True)
        except ValueError:
            decoded = b""
        mac, token = decoded[:32], decoded[32:]
        if not token or not any(hmac.compare_digest(mac, self._mac(key, token)) for key in self._keys):
            raise bad_request("page is not a next_page of this request")
        return token

    def _mac(self, key: bytes, token: bytes) -> bytes:
        return hmac.digest(key, self._scope + token, "sha256")


@dataclass(frozen=True, kw_only=True)
class Services:
    """What all requests of a gateway share."""

    temporal: Temporal
    limits: Limits
    owner_attribute: str
    identify: Identify | None
    metrics: Metrics
    page_tokens: PageTokens
    stream_slots: StreamSlots | None
    """``None`` for a gateway that is open to all: its callers are not distinguished."""
