"""Names of HTTP headers and query parameters, with their values (spec §4.1).

It also reads from browsers' headers which site sent a request.
"""

from collections.abc import Mapping
from enum import StrEnum


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
