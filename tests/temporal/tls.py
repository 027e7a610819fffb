"""A TLS front for the development server: checks certificates and API keys, and passes bytes on."""

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import hpack
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .proxy import pump, shut


@dataclass(frozen=True)
class Certificate:
    cert: bytes
    key: bytes


class Authority:
    """Signs certificates for one test."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("tests")
        self.cert = _sign(self._name, self._name, self._key.public_key(), self._key, is_authority=True)

    @property
    def pem(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, *, host: str = "localhost", expired: bool = False) -> Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        cert = _sign(
            _name(name), self._name, key.public_key(), self._key, is_authority=False, host=host, expired=expired
        )
        pem = serialization.Encoding.PEM
        return Certificate(
            cert.public_bytes(pem),
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    private: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool,
    host: str = "localhost",
    expired: bool = False,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC) - dt.timedelta(hours=3 if expired else 0)
    names = [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(private, hashes.SHA256())
    )


class TLSFront:
    """``demands_certificate`` from each client. With ``api_key``, requests need ``authorization: Bearer {api_key}``;
    others are answered with ``refusal``, a status of gRPC. ``authorizations`` are what the requests had."""

    def __init__(
        self,
        target: int,
        authority: Authority,
        directory: Path,
        *,
        server: Certificate | None = None,
        demands_certificate: bool = True,
        api_key: str | None = None,
        refusal: int = 16,
    ) -> None:
        server = server or authority.issue("localhost")
        for name, content in (("cert", server.cert), ("key", server.key), ("ca", authority.pem)):
            (directory / name).write_bytes(content)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "cert", directory / "key")
        if demands_certificate:
            context.load_verify_locations(directory / "ca")
            context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(["h2"])
        self.authorizations: list[str | None] = []
        self._expected = None if api_key is None else f"Bearer {api_key}"
        self._refusal = refusal
        self._context = context
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"localhost:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as near:
            begun, requests = b"", Requests()
            while not requests.authorizations:
                if not (data := near.recv(65536)):
                    return
                begun += data
                requests.feed(data)
            self.authorizations += requests.authorizations
            if self._expected is not None and any(each != self._expected for each in requests.authorizations):
                refuse(near, begun, self._refusal, f"the key {requests.authorizations[0]} is not valid")
                return
            self._pass_on(near, begun, requests)

    def _pass_on(self, near: socket.socket, begun: bytes, requests: "Requests") -> None:
        far = socket.create_connection(("127.0.0.1", self._target))
        far.sendall(begun)
        threading.Thread(target=pump, args=(far, near), daemon=True).start()
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                seen = len(requests.authorizations)
                requests.feed(data)
                self.authorizations += requests.authorizations[seen:]
                if self._expected is not None and any(each != self._expected for each in self.authorizations):
                    break
                far.sendall(data)
        shut(far)
        shut(near)


_PREFACE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
_HEADERS, _CONTINUATION, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x9, 0x4, 0x8, 0x20


class Requests:
    """Reads what a client of HTTP/2 sends, and answers nothing: see RFC 9113, section 4.1 and 6.2."""

    def __init__(self) -> None:
        self.authorizations: list[str | None] = []
        self._decoder = hpack.Decoder()
        self._rest = b""
        self._preface = _PREFACE
        self._block = b""

    def feed(self, data: bytes) -> None:
        skipped = min(self._preface, len(data))
        self._preface -= skipped
        self._rest += data[skipped:]
        while len(self._rest) >= 9 and len(self._rest) >= 9 + (length := int.from_bytes(self._rest[:3], "big")):
            self._read(self._rest[3], self._rest[4], self._rest[9 : 9 + length])
            self._rest = self._rest[9 + length :]

    def _read(self, kind: int, flags: int, payload: bytes) -> None:
        if kind not in (_HEADERS, _CONTINUATION):
            return
        if kind == _HEADERS:
            padding = payload[0] if flags & _PADDED else 0
            start = bool(flags & _PADDED) + (5 if flags & _PRIORITY else 0)
            payload = payload[start : len(payload) - padding]
        self._block += payload
        if flags & _END_HEADERS:
            headers = {str(name): str(value) for name, value in self._decoder.decode(self._block)}
            self.authorizations.append(headers.get("authorization"))
            self._block = b""


def refuse(near: socket.socket, begun: bytes, status: int, message: str) -> None:
    """Answer all requests of a connection with a status of gRPC."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_connection()
    data = begun
    while data:
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                headers = [(":status", "200"), ("content-type", "application/grpc")]
                headers += [("grpc-status", str(status)), ("grpc-message", message)]
                connection.send_headers(event.stream_id, headers, end_stream=True)
        near.sendall(connection.data_to_send())
        data = near.recv(65536)
