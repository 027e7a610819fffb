"""Connections to an engine, with urllib3.

``http_client`` imports this module with the first request, because many processes send none.
"""

import functools
import logging
import os
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from durably.errors import TransportError
from durably.settings import is_local

MAX_CONNECTIONS = 32
"""Maximum number of connections to one engine that are kept open."""
_CHUNK_BYTES = 64 * 1024


def _proxy_for(url: str) -> str | None:
    """The proxy from the environment or the platform.

    ``None`` for a URL on this machine.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_local(host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


@functools.cache
def _manager_of(proxy: str | None) -> urllib3.PoolManager:
    """The connections by way of a proxy. A forked child creates its own."""
    options: dict[str, Any] = {"maxsize": MAX_CONNECTIONS, "retries": False}
    if proxy is None:
        return urllib3.PoolManager(**options)
    parts = urlsplit(proxy)
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
    headers = urllib3.make_headers(proxy_basic_auth=credentials)
    return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_manager_of.cache_clear)


class _Quiet(threading.local):
    """Stops urllib3's log lines about our requests.

    The lines have whole URLs, and some contain the event key.
    """

    is_sending = False

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.is_sending


_quiet = _Quiet()
logging.getLogger("urllib3.connectionpool").addFilter(_quiet)


def send(method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout: float) -> tuple[int, bytes]:
    """The status and the body of the answer. See ``http_client.send``."""
    deadline = time.monotonic() + timeout
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    try:
        manager = _manager_of(_proxy_for(url))
    except ValueError:
        raise TransportError(
            f"cannot reach {origin}: the URL of the proxy in HTTP_PROXY or HTTPS_PROXY is not valid"
        ) from None
    _quiet.is_sending = True
    try:
        answer = manager.request(
            method,
            url,
            body=body,
            headers=dict(headers),
            timeout=urllib3.Timeout(total=timeout),
            redirect=False,
            preload_content=False,
        )
        return answer.status, _read(answer, deadline)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise TransportError(f"cannot reach {origin}: {failure_reason(error)}") from None
    except ValueError:  # Its text has the header's value, which may be secret.
        raise TransportError(
            f"cannot send a request to {origin}: one of its headers has a character that HTTP does not allow"
        ) from None
    finally:
        _quiet.is_sending = False


def _read(answer: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    """Read the whole body.

    The socket's timeout limits each wait for bytes, ``deadline`` limits their sum.
    """
    chunks: list[bytes] = []
    while chunk := answer.read1(_CHUNK_BYTES):
        chunks.append(chunk)
        if time.monotonic() > deadline:
            answer.close()
            raise urllib3.exceptions.TimeoutError
    return b"".join(chunks)


def failure_reason(error: Exception) -> str:
    """The reason of a failure, without the URL that urllib3's messages contain."""
    if isinstance(error, urllib3.exceptions.ProxyError):
        return f"its proxy: {failure_reason(error.original_error)}"
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return "the host's name cannot be resolved"
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # urllib3 makes it a kind of TimeoutError
        cause = error.__cause__
        return str(getattr(cause, "strerror", None) or "no connection can be made").lower()
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "it did not answer in time"
    if isinstance(error, urllib3.exceptions.ProxySchemeUnknown):
        return "its proxy's URL must begin with http:// or https://"
    if isinstance(error, urllib3.exceptions.SSLError):
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in error.args):
            return "its TLS certificate is not valid"
        return "the TLS handshake failed; is it an http:// URL?"
    return "the connection broke off"
