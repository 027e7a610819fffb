"""How the processes of several machines reach each other: the address, the key and TLS of the leader's API."""

import os
import socket
import ssl
from dataclasses import dataclass, field

from durably.engine.log.log import CommitLog, open_store
from durably.protocol.engine_errors import DatabasePathError, LogRefusedError
from durably.protocol.options import check_type
from durably.protocol.text import describe_os_error

TlsFiles = tuple[str | os.PathLike[str], str | os.PathLike[str], str | os.PathLike[str]]
"""PEM files: a certificate, its private key, and the certificate of the CA that signed those of all machines."""


@dataclass(frozen=True)
class Network:
    """The options of a process that shares a commit log with other machines.

    - ``host``: The host at which other machines reach this one. Empty: its address towards the log's store.
    - ``port``: 0 takes a free one.
    """

    url: str
    lease: float
    host: str
    port: int
    server_tls: ssl.SSLContext | None
    client_tls: ssl.SSLContext | None

    @classmethod
    def read(cls, log: str, address: str | None, tls: TlsFiles | None, lease: float) -> "Network":
        """Raises ``ValueError`` and ``TypeError``, and ``ImportError`` if the extra of the log is not installed."""
        check_type(log, "Embedded.log", str, "a URL: postgresql://… or s3://bucket/prefix")
        try:
            open_store(log)  # It does not connect.
        except LogRefusedError as error:
            raise ValueError(f"Embedded.log: {error.message}") from None
        host, port = ("", 0) if address is None else _read_address(address)
        server_tls = None if tls is None else _tls_context(ssl.PROTOCOL_TLS_SERVER, tls)
        client_tls = None if tls is None else _tls_context(ssl.PROTOCOL_TLS_CLIENT, tls)
        return cls(log, lease, host, port, server_tls, client_tls)

    def listen(self, log: CommitLog) -> socket.socket:
        """Listen at all addresses of this machine, and set the log's ``address``. Raises ``DatabasePathError``."""
        is_dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if is_dual else socket.AF_INET
        try:
            listener = socket.create_server(("", self.port), family=family, backlog=1024, dualstack_ipv6=is_dual)
        except OSError as error:
            raise DatabasePathError(
                f"this process cannot lead, because it cannot listen at port {self.port} ({describe_os_error(error)}): "
                "give Embedded another address"
            ) from None
        host = self.host or log.store.local_host
        log.address = f"[{host}]" if ":" in host else host
        log.address += f":{listener.getsockname()[1]}"
        return listener


@dataclass(frozen=True)
class RemoteLeader:
    """The leader on another machine: its id and address in the log, and what it needs to trust this process."""

    node: str
    address: str
    key: str = field(repr=False)
    tls: ssl.SSLContext | None


def _read_address(address: str) -> tuple[str, int]:
    check_type(address, "Embedded.address", str, 'like "10.0.0.5:8290" or ":8290"')
    host, _, port = address.rpartition(":")
    is_host = host.startswith("[") and host.endswith("]") if ":" in host else "/" not in host
    if not is_host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError(f'Embedded.address must be like "10.0.0.5:8290", "[fd00::5]:8290" or ":8290", not {address!r}')
    return host.strip("[]"), int(port)


def _tls_context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    """A context in which both sides need a certificate of the CA.

    The CA is the proof, not the name in the certificate, because addresses of machines change.
    """
    check_type(files, "Embedded.tls", tuple, "three paths: (certificate, key, CA certificate)")
    if len(files) != 3:
        raise ValueError(f"Embedded.tls must be three paths, (certificate, key, CA certificate), not {len(files)}")
    certificate, key, authority = files
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(authority)
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise ValueError(
            f"Embedded.tls: the certificate {certificate}, its key {key} and the CA's certificate {authority} must be "
            f"PEM files that this process can read ({error.strerror or error})"
        ) from None
    return context
