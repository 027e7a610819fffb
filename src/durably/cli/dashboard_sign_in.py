"""The sign-in of the dashboard of ``durably start``, by its options."""

from collections.abc import Collection

from durably.engine.core.errors import EngineError
from durably.engine.dashboard.dashboard import Dashboard
from durably.engine.dashboard.sign_in import (
    DashboardServer,
    KeySignIn,
    ProxySignIn,
    SignIn,
    check_header,
    check_key,
    read_network,
)
from durably.settings import DASHBOARD_KEY

from .text import CliError


def read_sign_in(
    key: str | None, header: str | None, proxies: Collection[str], *, other_keys: Collection[str | None]
) -> SignIn | None:
    """The sign-in of the dashboard, ``None`` if it is off.

    ``other_keys`` are those of the engine. Raises ``CliError``.
    """
    if key is not None and header is not None:
        raise CliError(f"--dashboard-key ({DASHBOARD_KEY}) and --dashboard-proxy-header exclude each other")
    if proxies and header is None:
        raise CliError("--dashboard-proxy needs --dashboard-proxy-header, the header that the proxy sets")
    if key is not None and key in other_keys:
        raise CliError(
            "the dashboard's key must not be another key of the engine, because people enter it in browsers: "
            "`durably keys --dashboard` makes one of its own"
        )
    try:
        if key is not None:
            check_key(key)
        if header is not None:
            check_header(header)
        networks = [read_network(text) for text in proxies]
    except EngineError as error:
        raise CliError(error.message) from None

    def sign_in(dashboard: Dashboard) -> DashboardServer:
        return KeySignIn(dashboard, key) if key is not None else ProxySignIn(dashboard, header or "", networks)

    return None if key is None and header is None else sign_in
