"""Requests that no client library would send, byte by byte, and their expected responses."""

import http.client
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

PLACE = "/open/orders"
ORDER = b'{"order_id": "a", "amount": 1}'
MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Request:
    """``length`` is the Content-Length header, by default that of the body. ``media_type`` may be ``""``."""

    method: str
    path: str
    body: bytes = b""
    headers: tuple[str, ...] = ()
    media_type: str = "application/json"
    length: int | str | None = None
    is_cut_off: bool = False

    def encode(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: 127.0.0.1", *self.headers]
        if self.media_type:
            lines.append(f"Content-Type: {self.media_type}")
        if self.length is not None or self.method in ("POST", "PUT"):
            lines.append(f"Content-Length: {len(self.body) if self.length is None else self.length}")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self.body


@dataclass(frozen=True)
class BadAnswer:
    status: int
    media_type: str
    body: bytes


def send(origin: str, request: Request | bytes, *, ends: bool = True) -> BadAnswer | None:
    """The response; ``None`` if the connection is closed without one. ``ends``: nothing follows the bytes."""
    url = urlsplit(origin)
    data = request if isinstance(request, bytes) else request.encode()
    with socket.create_connection((url.hostname, url.port or 80), timeout=30) as connection:
        try:
            connection.sendall(data)
            if ends and (isinstance(request, bytes) or request.is_cut_off):
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            """The server has responded before the whole request was sent."""
        try:
            response = http.client.HTTPResponse(connection, method="HEAD" if data.startswith(b"HEAD") else "GET")
            response.begin()
            return BadAnswer(response.status, response.headers.get_content_type(), response.read())
        except (OSError, http.client.HTTPException):
            return None


def post(body: bytes, **options: object) -> Request:
    return Request("POST", PLACE, body, **options)  # type: ignore[arg-type]


PROBLEMS: dict[str, tuple[Request, set[int]]] = {
    "no workflow": (Request("GET", "/open/nothing"), {404}),
    "no endpoint": (Request("GET", f"{PLACE}/x/nothing"), {404}),
    "nothing": (Request("GET", "/open/"), {404}),
    "empty segments": (Request("GET", "/open//orders//x"), {404}),
    "slashes alone": (Request("GET", "/open///"), {404}),
    "encoded slash": (Request("GET", f"{PLACE}/a%2Fb"), {404}),
    "encoded dots": (Request("GET", f"{PLACE}/%2e%2e/x"), {404}),
    "dots": (Request("GET", f"{PLACE}/../orders/x/nothing"), {404}),
    "NUL": (Request("GET", f"{PLACE}/a%00b"), {400}),
    "line feed": (Request("GET", f"{PLACE}/a%0Ab"), {400}),
    "line feed at the end": (Request("GET", f"{PLACE}/a%0A"), {400}),
    "no UTF-8 in the path": (Request("GET", f"{PLACE}/a%FFb"), {400, 404}),
    "a surrogate in the path": (Request("GET", f"{PLACE}/a%ED%A0%80"), {400, 404}),
    "no percent-encoding": (Request("GET", f"{PLACE}/a%zz"), {400, 404}),
    "no query": (Request("GET", f"{PLACE}?&&=&=x&%&page=%zz&page_size[]=1"), {400}),
    "another method": (Request("DELETE", f"{PLACE}/x", media_type=""), {405}),
    "another method with a body": (Request("PUT", f"{PLACE}/x", b"{}"), {405}),
    "HEAD": (Request("HEAD", f"{PLACE}/x", media_type=""), {404}),
    "too large": (post(b'{"order_id": "' + b"a" * 3 * MEBIBYTE + b'"}'), {413}),
    "deep": (post(b"[" * MEBIBYTE), {400}),
    "deep objects": (post(b'{"a":' * 100_000), {400}),
    "NaN": (post(b'{"order_id": "a", "amount": NaN}'), {400}),
    "a number of many digits": (post(b'{"order_id": "a", "amount": ' + b"9" * 10_000 + b"}"), {400}),
    "a lone surrogate": (post(b'{"order_id": "\\ud800", "amount": 1}'), {400}),
    "a key twice, last bad": (post(b'{"order_id": "a", "amount": 1, "amount": -1}'), {400}),
    "no UTF-8": (post(b'{"order_id": "\xff", "amount": 1}'), {400}),
    "NUL in an id": (post(b'{"order_id": "\\u0000", "amount": 1}'), {400}),
    "no body": (post(b""), {400}),
    "no body, of some type": (post(b"", media_type="application/octet-stream"), {400}),
    "no body, from a form": (post(b"", media_type="application/x-www-form-urlencoded"), {400, 415}),
    "a form": (post(b"order_id=a", media_type="application/x-www-form-urlencoded"), {400, 415}),
    "a broken form": (post(b"order_id=a", media_type="multipart/form-data; boundary=x"), {400, 415}),
    "a malformed key": (Request("POST", "/open/sleeping", b"{}", ("Idempotency-Key: \xff",)), {400}),
}
"""Requests below the gateway's mount point that reach the framework."""

SAID_TO_BE_TOO_LARGE = post(ORDER, length=10**9)

CHUNKED = (
    b"POST /open/orders HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)

BAD_BYTES: dict[str, Request | bytes] = {
    "cut off": post(ORDER, length=500, is_cut_off=True),
    "cut off amid the head": b"POST /open/orders HTTP/1.1\r\nHost: a\r\nContent-Le",
    "a negative length": post(ORDER, length=-5, is_cut_off=True),
    "no length": post(ORDER, length="abc", is_cut_off=True),
    "infinite": post(b'{"order_id": "infinite", "amount": 1e999}'),
    "too short a length": post(ORDER, length=5, is_cut_off=True),
    "malformed chunks": CHUNKED + b"zz\r\n",
    "chunks that are cut off": CHUNKED + b"1e\r\n" + ORDER[:5],
    "a large header": Request("GET", PLACE, headers=("X-A: " + "a" * 200_000,)),
    "many headers": Request("GET", PLACE, headers=tuple(f"X-{number}: a" for number in range(2000))),
    "a long path": Request("GET", f"{PLACE}/" + "a" * 200_000),
    "many parameters": Request("GET", f"{PLACE}?" + "&".join(f"a{number}=1" for number in range(3000))),
    "a path of bytes": Request("GET", f"{PLACE}/a\xe9\xff"),
    "a type of bytes": post(ORDER, media_type="\xff\x00;;"),
    "an unknown method": Request("FOO", f"{PLACE}/x"),
    "TRACE": Request("TRACE", f"{PLACE}/x", media_type=""),
    "OPTIONS": Request("OPTIONS", f"{PLACE}/x", media_type=""),
    "a bad host": b"GET /open/orders HTTP/1.1\r\nHost: a b\xff\r\n\r\n",
    "no host": b"GET /open/orders HTTP/1.1\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x00\xff\r\n\r\n",
}
"""Requests that web servers and frameworks refuse by themselves."""
