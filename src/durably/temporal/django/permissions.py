"""Django's permissions as the gateway's ``authorize``."""

from collections.abc import Callable, Mapping
from typing import Any

from durably.temporal.codec_server import CodecAction
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.gateway import Action, Operation, Unauthenticated
from durably.temporal.gateway.authorization import is_anonymous


def require_permissions(
    permissions: Mapping[Operation | str, str], *, otherwise: str | None = None
) -> Callable[[Action], bool]:
    """``authorize=require_permissions({Operation.START: "shop.add_order"}, otherwise="shop.view_order")``.

    Names the permission for each operation; ``otherwise`` is for those that are not named, which nobody may do without
    it. Who is not logged in gets 401. Raises ``TemporalSettingsError`` for operations that do not exist.
    """
    try:
        wanted = {Operation(operation): permission for operation, permission in permissions.items()}
    except ValueError as error:
        raise TemporalSettingsError(f"{error}; there are {', '.join(Operation)}") from None

    def authorize(action: Action) -> bool:
        user = _logged_in(action.principal)
        permission = wanted.get(action.operation, otherwise)
        return permission is not None and bool(user.has_perm(permission))

    return authorize


def require_codec_permission(permission: str) -> Callable[[CodecAction], bool]:
    """``authorize`` of a ``CodecServer``: users with the permission. Who is not logged in gets 401."""
    return lambda action: bool(_logged_in(action.principal).has_perm(permission))


def _logged_in(user: Any) -> Any:
    if is_anonymous(user):
        raise Unauthenticated("Session")
    return user
