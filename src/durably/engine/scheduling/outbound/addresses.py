"""Which addresses the engine connects to on behalf of a step.

Checked on the address of the very socket that is about to connect, after names are resolved, redirects followed
and odd spellings (``0x7f.1``, ``[::ffff:127.0.0.1]``) understood: nothing comes between check and connection, so a
name that resolves otherwise the second time gains nothing.
"""

import ipaddress
import socket
from typing import Any

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # IETF protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # Azure's metadata and control endpoint, in the midst of public addresses
        "2001::/23",  # IETF protocol assignments, Teredo among them, which wraps IPv4 addresses
        "2002::/16",  # 6to4, which wraps IPv4 addresses
        "3fff::/20",  # documentation
    )
)


class AddressRefusedError(OSError):
    """An address is not public. The text is the same for all, so that the refusals of one name merge into one."""

    def __init__(self) -> None:
        super().__init__("not a public address")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet's: not private, loopback, link-local (where clouds serve
    credentials), shared (CGNAT), multicast or reserved, nor an IPv6 address that wraps an IPv4 one."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _GLOBAL_UNICAST:
        return False
    if any(ip.version == network.version and ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def open_public_socket(address_info: tuple[Any, ...]) -> socket.socket:
    """A socket for an entry of ``getaddrinfo``. Raises ``AddressRefusedError`` unless its address is public."""
    family, kind, protocol, _, address = address_info
    if not is_public(address[0]):
        raise AddressRefusedError
    return socket.socket(family=family, type=kind, proto=protocol)
