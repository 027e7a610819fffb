"""Errors of failed connections, which name the setting at fault, without its secrets.

The native client reports messages of its TLS library and of gRPC. They are not documented and were read from
``temporalio`` 1.35.0. A message that is not in the table is shown unchanged.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence

from temporalio.client import Client, Interceptor
from temporalio.service import RetryConfig, RPCError, TLSConfig

from durably.temporal.compat import connect_failure
from durably.temporal.errors import TemporalCredentialsError, TemporalUnreachableError
from durably.temporal.settings import ConnectionSettings, with_own_names

_CERT = "TEMPORAL_TLS_CLIENT_CERT_PATH or …_CERT_DATA, or TLSConfig(client_cert=…)"
_KEY = "TEMPORAL_TLS_CLIENT_KEY_PATH or …_KEY_DATA, or TLSConfig(client_private_key=…)"
_CA = "TEMPORAL_TLS_SERVER_CA_CERT_PATH or …_CA_CERT_DATA, or TLSConfig(server_root_ca_cert=…)"
_NAME = "TEMPORAL_TLS_SERVER_NAME or TLSConfig(domain=…)"
_API_KEY = "TEMPORAL_API_KEY or Temporal(api_key=…)"
_TLS = "TEMPORAL_TLS or Temporal(tls=…)"
_DEMANDS_CERTIFICATE = f"the server demands a client certificate: set {_CERT}, and {_KEY}"
_REFUSES_CERTIFICATE = (
    "the server refuses the client certificate: check that it has not expired, and that an authority that the server "
    f"trusts has signed it ({_CERT})"
)
_CAUSES = (
    (
        r"InvalidCertificate\((UnknownIssuer|BadSignature)",
        f"no trusted authority signed the server's certificate: check {_CA}",
    ),
    (
        r"InvalidCertificate\((Expired|NotValidYet)",
        "the server's certificate has expired, or is not valid yet: renew it there, and check this machine's clock",
    ),
    (
        r"InvalidCertificate\(NotValidForName",
        f"the server's certificate is for another name: check TEMPORAL_ADDRESS, and {_NAME}",
    ),
    (r"InvalidCertificate", f"the server's certificate is not accepted: check {_CA}"),
    (r"InconsistentKeys", f"the private key does not match the client certificate: check {_CERT}, and {_KEY}"),
    (
        r"failed to parse private key|PrivateKeyParseError",
        f"the private key cannot be read: it is a PEM file; check {_KEY}",
    ),
    (r"NoCertificatesPresented", f"the client certificate cannot be read: it is a PEM file; check {_CERT}"),
    (r"InvalidMessage", f"the server does not speak TLS at this port: check TEMPORAL_ADDRESS, and {_TLS}"),
    (r"received fatal alert: CertificateRequired", _DEMANDS_CERTIFICATE),
    (r"received fatal alert: ", _REFUSES_CERTIFICATE),
    (r"code: Unauthenticated", f"the server refuses the app's API key: check {_API_KEY}"),
    (r"code: PermissionDenied", f"the server denies the app the namespace: check TEMPORAL_NAMESPACE, and {_API_KEY}"),
)
"""Patterns of the native client's messages for refused credentials, and their meanings."""
_BROKEN = re.compile(
    r"call error after connection.*"
    r"(connection closed|ConnectionReset|BrokenPipe|UnexpectedEof|operation was canceled|transport error)",
    re.DOTALL,
)
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 2.0
"""Seconds between two attempts of ``connect_with_retries``."""


def connect_error(settings: ConnectionSettings, error: RuntimeError | RPCError) -> TemporalUnreachableError:
    """The error to raise for an error of ``Client.connect``.

    Its cause is ``error``, unless the text of that contains the API key: tracebacks show causes.
    """
    text, key = str(error), settings.api_key
    said = f"{error.status.name}: {error.message}" if isinstance(error, RPCError) else connect_failure(error)
    shown = said.replace(key, "[redacted]") if key else said
    for pattern, cause in _CAUSES:
        if re.search(pattern, text):
            detail = f" (it says: {shown})" if "code: " in pattern else ""
            reason = with_own_names(cause + detail, settings)
            failure: TemporalUnreachableError = TemporalCredentialsError(
                f"no connection to the Temporal server at {settings.address}: {reason}", settings.address
            )
            break
    else:
        if _BROKEN.search(text):  # Servers may refuse credentials by closing the connection.
            if settings.tls is False or (settings.tls is None and settings.api_key is None):
                guess = f"it expects TLS: set {_TLS}"
            else:
                has_certificate = isinstance(settings.tls, TLSConfig) and settings.tls.client_cert is not None
                guess = _REFUSES_CERTIFICATE if has_certificate else _DEMANDS_CERTIFICATE
            shown = f"the server closes the connection immediately. Perhaps {guess}"
        failure = unreachable(settings, shown)
    failure.__cause__ = None if key and key in text else error
    return failure


def explain_refusal(message: str, settings: ConnectionSettings) -> str:
    """The message for a refusal by a connected server, with the remedy for an unknown namespace."""
    found = re.search(r"Namespace (\S+) (?:is|was) not found", message)
    if found is None:
        return f"the server refuses: {message}"
    return (
        f'the server at {settings.address} has no namespace "{found[1]}": check '
        f"{settings.variable_prefix}NAMESPACE, or create it: `temporal operator namespace create {found[1]}`"
    )


def unreachable(settings: ConnectionSettings, reason: str) -> TemporalUnreachableError:
    return TemporalUnreachableError(
        f"the Temporal server at {settings.address} cannot be reached: {with_own_names(reason, settings)}. Is it "
        f"running, and is the address right ({settings.variable_prefix}ADDRESS)? For development, `temporal server "
        "start-dev` starts one.",
        settings.address,
    )


async def connect_with_retries(
    connect: Callable[..., Awaitable[Client]],
    note: Callable[[TemporalUnreachableError], None],
    interceptors: Sequence[Interceptor] | None = (),
) -> Client:
    """Connect by ``Temporal.connect`` once the server answers, with the SDK's own retries of calls.

    ``note`` gets the error of the first failed attempt, and later ones with another reason. Raises
    ``TemporalSettingsError`` and ``TemporalCredentialsError`` immediately, because waiting does not help.
    """
    pause, noted = FIRST_PAUSE_SECONDS, ""
    while True:
        try:
            return await connect(retry_config=RetryConfig(), interceptors=interceptors)
        except TemporalCredentialsError:
            raise
        except TemporalUnreachableError as error:
            if error.message != noted:
                noted = error.message
                note(error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
