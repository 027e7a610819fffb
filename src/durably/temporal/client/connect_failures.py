"""Failed connections: reasons that name the setting, and connection retries.

The reasons are about certificates, keys, names and API keys. The native client reports messages of its TLS library and
of gRPC. They are not documented and were read from ``temporalio`` 1.35.0. A message that is not in the table is shown
unchanged.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from temporalio.client import Client
from temporalio.service import RetryConfig, RPCError, TLSConfig

from durably.temporal.compat import connect_failure
from durably.temporal.errors import TemporalCredentialsError, TemporalUnreachableError
from durably.temporal.settings import ConnectionSettings, with_own_names

CLIENT_CERT = "TEMPORAL_TLS_CLIENT_CERT_PATH or …_CERT_DATA, or TLSConfig(client_cert=…)"
CLIENT_KEY = "TEMPORAL_TLS_CLIENT_KEY_PATH or …_KEY_DATA, or TLSConfig(client_private_key=…)"
_CA = "TEMPORAL_TLS_SERVER_CA_CERT_PATH or …_CA_CERT_DATA, or TLSConfig(server_root_ca_cert=…)"
_NAME = "TEMPORAL_TLS_SERVER_NAME or TLSConfig(domain=…)"
_API_KEY = "TEMPORAL_API_KEY or Temporal(api_key=…)"
_TLS = "TEMPORAL_TLS or Temporal(tls=…)"
_DEMANDS_CERTIFICATE = f"the server demands a client certificate: set {CLIENT_CERT}, and {CLIENT_KEY}"
_REFUSES_CERTIFICATE = (
    "the server refuses the client certificate: check that an authority that the server trusts has signed it "
    "({CLIENT_CERT})"
)
_CAUSES = (
    (
        r"InvalidCertificate\((UnknownIssuer|BadSignature)",
        f"no trusted authority signed the server's certificate: check {_CA}",
    ),
    (
        r"InvalidCertificate\(Expired",
        "the server's certificate has expired: renew it there, and check this machine's clock",
    ),
    (r"InvalidCertificate\(NotValidYet", "the server's certificate is not valid yet: check this machine's clock"),
    (
        r"InvalidCertificate\(NotValidForName",
        f"the server's certificate is for another name: check TEMPORAL_ADDRESS, and {_NAME}",
    ),
    (r"InvalidCertificate", f"the server's certificate is not accepted: check {_CA}"),
    (
        r"InconsistentKeys",
        f"the private key does not match the client certificate: check {CLIENT_CERT}, and {CLIENT_KEY}",
    ),
    (r"failed to parse private key", f"the private key cannot be read: it is a PEM file; check {CLIENT_KEY}"),
    (r"NoCertificatesPresented", f"the client certificate cannot be read: it is a PEM file; check {CLIENT_CERT}"),
    (r"InvalidMessage", f"the server does not speak TLS at this port: check TEMPORAL_ADDRESS, and {_TLS}"),
    (r"received fatal alert: CertificateRequired", _DEMANDS_CERTIFICATE),
    (
        r"received fatal alert: CertificateExpired",
        f"the server refuses the client certificate, which has expired: renew it ({CLIENT_CERT})",
    ),
    (r"received fatal alert: ", _REFUSES_CERTIFICATE),
    (r"code: Unauthenticated", f"the server refuses the app's API key: check {_API_KEY}"),
    (
        r"code: PermissionDenied",
        f"the server denies the app the namespace: check TEMPORAL_NAMESPACE, and {_API_KEY}",
    ),
)
"""Patterns of the native client's messages, and their meanings."""
_BROKEN = re.compile(
    r"connection closed|ConnectionReset|BrokenPipe|UnexpectedEof|operation was canceled|transport error"
)
_AFTER_CONNECT = "call error after connection"
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 2.0
"""Seconds between two attempts of ``connect_with_retries``."""


@dataclass(frozen=True)
class ConnectFailure:
    """The reason of a failed connection.

    ``is_refusal``: the server or the app refuses the other's credentials, so a retry does not help.
    """

    reason: str
    is_refusal: bool = False


def connect_error(settings: ConnectionSettings, error: RuntimeError | RPCError) -> TemporalUnreachableError:
    """The error to raise for an error of ``Client.connect``."""
    said = f"{error.status.name}: {error.message}" if isinstance(error, RPCError) else connect_failure(error)
    found = explain_failure(str(error), said, settings)
    if not found.is_refusal:
        return unreachable(settings, found.reason)
    reason = with_own_names(found.reason, settings)
    return TemporalCredentialsError(
        f"no connection to the Temporal server at {settings.address}: {reason}", settings.address
    )


def explain_refusal(message: str, settings: ConnectionSettings) -> str:
    """The message for a refusal by a connected server.

    It has the remedy if the server does not know the namespace.
    """
    return unknown_namespace(message, settings) or f"the server refuses: {message}"


def unknown_namespace(message: str, settings: ConnectionSettings) -> str | None:
    """The remedy for a namespace that the server does not know.

    Returns ``None`` unless ``message`` of the server or the SDK reports this.
    """
    found = re.search(r"Namespace (\S+) (?:is|was) not found", message)
    if found is None:
        return None
    setting = with_own_names("TEMPORAL_NAMESPACE", settings)
    return (
        f'the server at {settings.address} has no namespace "{found[1]}": check {setting}, or create it: `temporal '
        f"operator namespace create {found[1]}`"
    )


def unreachable(settings: ConnectionSettings, reason: str) -> TemporalUnreachableError:
    return TemporalUnreachableError(
        f"the Temporal server at {settings.address} cannot be reached: {with_own_names(reason, settings)}. Is it "
        f"running, and is the address right ({settings.variable_prefix}ADDRESS)? For development, `temporal server "
        "start-dev` starts one.",
        settings.address,
    )


def cause_to_show(settings: ConnectionSettings, error: Exception) -> Exception | None:
    """``error`` as the cause, or ``None`` if its text contains the API key.

    Tracebacks show causes.
    """
    return None if settings.api_key and settings.api_key in str(error) else error


def explain_failure(text: str, message: str, settings: ConnectionSettings) -> ConnectFailure:
    """The reason of a failed connection, without the secrets of the settings.

    ``text`` is the native client's message, ``message`` the part of it that users see.
    """
    for pattern, cause in _CAUSES:
        if re.search(pattern, text):
            shown = f" (it says: {_without_secrets(message, settings)})" if "code: " in pattern else ""
            return ConnectFailure(cause + shown, is_refusal=True)
    if _AFTER_CONNECT in text and _BROKEN.search(text):
        return ConnectFailure(f"the server closes the connection immediately. {_guess(settings)}")
    return ConnectFailure(_without_secrets(message, settings))


def _guess(settings: ConnectionSettings) -> str:
    """A guess at the setting, because servers may refuse by closing the connection."""
    tls = settings.tls
    if tls is None:
        tls = settings.api_key is not None
    if tls is False:
        return f"Perhaps it expects TLS: set {_TLS}"
    if isinstance(tls, TLSConfig) and tls.client_cert is not None:
        return f"Perhaps {_REFUSES_CERTIFICATE}"
    return f"Perhaps {_DEMANDS_CERTIFICATE}"


def _without_secrets(text: str, settings: ConnectionSettings) -> str:
    return text.replace(settings.api_key, "[redacted]") if settings.api_key else text


async def connect_with_retries(
    connect: Callable[..., Awaitable[Client]], note: Callable[[TemporalUnreachableError], None]
) -> Client:
    """Connect by ``Temporal.connect`` once the server answers.

    ``note`` gets the error of each failed attempt. Raises ``TemporalSettingsError`` and ``TemporalCredentialsError``
    immediately, because waiting does not help.
    """
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return await connect(retry_config=RetryConfig(), interceptors=())
        except TemporalCredentialsError:
            raise
        except TemporalUnreachableError as error:
            note(error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
