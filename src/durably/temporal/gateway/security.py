"""The security schemes that an app declares for the gateway's OpenAPI document."""

from collections.abc import Mapping
from typing import Any

from durably.temporal.errors import TemporalSettingsError

SecuritySchemes = Mapping[str, Mapping[str, Any]]
"""Scheme objects of OpenAPI by name, such as ``{"token": {"type": "http", "scheme": "bearer"}}``."""

_NEEDED = {
    "apiKey": ("name", "in"),
    "http": ("scheme",),
    "oauth2": ("flows",),
    "openIdConnect": ("openIdConnectUrl",),
}


def check_security_schemes(schemes: SecuritySchemes | None) -> dict[str, dict[str, Any]]:
    """Raises ``TemporalSettingsError`` for an unknown type or a member that is missing."""
    checked = {name: dict(scheme) for name, scheme in (schemes or {}).items()}
    for name, scheme in checked.items():
        needed = _NEEDED.get(scheme.get("type", ""))
        if needed is None:
            raise TemporalSettingsError(
                f'Gateway(security_schemes=…): "{name}" has the type {scheme.get("type")!r}; '
                f"there are {', '.join(_NEEDED)}"
            )
        if missing := [member for member in needed if member not in scheme]:
            raise TemporalSettingsError(
                f'Gateway(security_schemes=…): "{name}" has no {missing[0]!r}, which the type {scheme["type"]} needs'
            )
    return checked


def requirements(schemes: Mapping[str, Any]) -> list[dict[str, list[str]]]:
    """Any one of the schemes is enough."""
    return [{name: []} for name in schemes]
