"""Names of HTTP headers and query parameters, with their values (spec §4.1).

It also reads from browsers' headers which site sent a request.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, Self


class Header(StrEnum):
    """Header names in lower case, which both sides compare."""

    ANSWER_SIGNATURE = "x-durably-signature"
    AUTHORIZATION = "authorization"
    BAGGAGE = "baggage"
    CONTENT_TYPE = "content-type"
    ENV = "x-inngest-env"
    EVENT_ID_SEED = "x-inngest-event-id-seed"
    EXPECTED_SERVER_KIND = "x-inngest-expected-server-kind"
    FORCE_STEP_PLAN = "x-inngest-force-step-plan"
    FRAMEWORK = "x-inngest-framework"
    GENERATION_ID = "x-inngest-generation-id"
    JOB_ID = "x-inngest-job-id"
    NO_RETRY = "x-inngest-no-retry"
    REQUEST_ID = "x-request-id"
    REQUEST_VERSION = "x-inngest-req-version"
    RETRY_AFTER = "retry-after"
    RUN_ID = "x-run-id"
    SDK = "x-inngest-sdk"
    SERVER_KIND = "x-inngest-server-kind"
    SERVER_TIMING = "server-timing"
    SIGNATURE = "x-inngest-signature"
    SYNC_KIND = "x-inngest-sync-kind"
    TRACEPARENT = "traceparent"
    TRACESTATE = "tracestate"
    USER_AGENT = "user-agent"


class Query(StrEnum):
    """Query parameters of the app's endpoint."""

    FUNCTION_ID = "fnId"
    STEP_ID = "stepId"
    PROBE = "probe"
    DEPLOY_ID = "deployId"


class ServerKind(StrEnum):
    """The two modes of engines and apps.

    An engine and an app work together only in the same mode (spec §7).
    """

    CLOUD = "cloud"
    DEV = "dev"


class SyncKind(StrEnum):
    IN_BAND = "in_band"
    OUT_OF_BAND = "out_of_band"


class Probe(StrEnum):
    TRUST = "trust"


VERSION = "0.1.0"
"""This package's version, which apps and engines report. pyproject.toml reads it here."""

ENGINE_USER_AGENT = "durably"
"""The ``user-agent`` of Durably's engine, which continues the traces of events (``traceparent``) in calls."""

DISCOVER = "step"
"""The ``stepId`` of a call without a target: run the function until new steps are found."""

REQUEST_VERSION = "2"
"""Value of ``x-inngest-req-version``: the call format that both sides speak."""

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def is_of_another_site(headers: Mapping[str, str]) -> bool:
    """Whether the browser reports a request from a page of another site.

    Browsers send ``Sec-Fetch-Site`` over HTTPS and to localhost only. Without it, ``Origin`` is compared with ``Host``,
    or with ``X-Forwarded-Host`` behind a proxy.
    """
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    if (origin := headers.get("origin")) is None:
        return False
    scheme, _, asking = origin.lower().partition("://")
    asked = (headers.get("host", ""), *headers.get("x-forwarded-host", "").split(","))
    # An origin omits the default port.
    hosts = {host.strip().lower().removesuffix(_DEFAULT_PORTS.get(scheme, "")) for host in asked}
    return not asking or asking not in hosts


_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]*)?")
_MAX_LENGTH = 256
_INVALID_VERSION = "ff"
_SAMPLED = 1
_VALUE = re.compile(r"[\x20-\x7e]*")
MAX_STATE, MAX_BAGGAGE = 512, 8192
"""Maximum bytes of ``tracestate`` and ``baggage`` that are passed on. The specifications allow dropping longer ones."""


class TraceContext(NamedTuple):
    """The ids of a span and of its trace, with the state and baggage of the trace.

    ``is_sampled``: the trace is sampled. ``state`` and ``baggage`` are the values of the headers, ``""`` if there are
    none.
    """

    trace_id: int
    span_id: int
    is_sampled: bool
    state: str = ""
    baggage: str = ""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse the stored form of a context, such as a ``traceparent``.

        ``None`` if it is invalid, because the specification requires ignoring invalid contexts. A version after 00 may
        have more fields.
        """
        text, *rest_of_trace = text.split("\n")
        state, baggage = (*rest_of_trace, "", "")[:2]
        match = _TRACEPARENT.fullmatch(text) if len(text) <= _MAX_LENGTH else None
        if match is None:
            return None
        version, trace_id, span_id, flags, rest = match.groups()
        if version == _INVALID_VERSION or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED), state, baggage)

    def __str__(self) -> str:
        """The context in its stored form."""
        parent = f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.is_sampled:02x}"
        return f"{parent}\n{self.state}\n{self.baggage}".rstrip("\n")


def read_trace(headers: Mapping[str, str | None]) -> str | None:
    """The context in received headers, in its stored form.

    ``None`` if there is no valid one. A ``tracestate`` or ``baggage`` that is too long or not printable is omitted.
    """
    parent = headers.get(Header.TRACEPARENT)
    context = None if not parent or "\n" in parent else TraceContext.parse(parent)
    if context is None:
        return None
    state, baggage = headers.get(Header.TRACESTATE) or "", headers.get(Header.BAGGAGE) or ""
    return str(context._replace(state=_read(state, MAX_STATE), baggage=_read(baggage, MAX_BAGGAGE)))


def trace_headers(kept: str | None) -> dict[str, str]:
    """The headers that pass on a context in its stored form."""
    if not kept:
        return {}
    if "\n" not in kept:
        return {Header.TRACEPARENT.value: kept}
    parent, state, baggage = (*kept.split("\n"), "")[:3]
    values = {Header.TRACEPARENT.value: parent, Header.TRACESTATE.value: state, Header.BAGGAGE.value: baggage}
    return {name: value for name, value in values.items() if value}


def _read(value: str, longest: int) -> str:
    return value.strip() if len(value) <= longest and _VALUE.fullmatch(value) else ""
