"""Which hosts and origins a development engine answers to.

A development engine needs no keys, so only its address protects it from web pages. DNS rebinding defeats
that: a page of ``evil.example`` makes its name resolve to 127.0.0.1, and its requests come from this machine. The
``Host`` header still says ``evil.example``, so the engine refuses hosts that are not local.
"""

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
ANY_HOST = "*"
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s:/@\[\]]+))(?::[0-9]{0,5})?")


class AllowedHosts:
    """``listening`` is the host that the engine listens at, ``names`` are further hosts that it answers to.

    Loopback addresses, ``localhost`` and the host that it listens at are always allowed. If the engine listens at all
    addresses (0.0.0.0, ::), any IP address is allowed, because DNS cannot redirect it.
    ``"*"`` among the names allows every host.
    """

    def __init__(self, listening: str = "127.0.0.1", names: Iterable[str] = ()) -> None:
        self._any = ANY_HOST in names
        self._any_address = listening in ("", "0.0.0.0", "::")
        self._names = frozenset(_normalise(name) for name in (*LOOPBACK_HOSTS, listening, *names))

    def allows_host(self, header: str | None) -> bool:
        """Whether a request may have this ``Host`` header: a name or an address, with or without a port."""
        match = _HOST.fullmatch(header or "")
        return match is not None and self._allows(match["ipv6"] or match["name"])

    def allows_origin(self, header: str) -> bool:
        """Whether a page of this ``Origin`` may make requests."""
        try:
            host = urlsplit(header).hostname
        except ValueError:  # such as "http://["
            return False
        return host is not None and self._allows(host)

    def _allows(self, host: str) -> bool:
        host = _normalise(host)
        if self._any or host in self._names:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return self._any_address or address.is_loopback


def check_allowed_host(name: str) -> str:
    """The name in its form for comparison. Raises ``ValueError`` for a URL, or a host with a port."""
    if name == ANY_HOST:
        return name
    bare = _normalise(name)
    is_host = _is_address(bare) if ":" in bare else _HOST.fullmatch(bare) is not None
    if not is_host:
        raise ValueError(f"{name!r} is not a host: give a name or an address, without scheme, port and path")
    return bare


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _normalise(host: str) -> str:
    """In lower case, without the dot of an absolute name, an address in its shortest form."""
    host = host.strip("[]").rstrip(".").lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
