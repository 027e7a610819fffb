"""The sign-in of the dashboard of ``durably start``, by its options."""

from collections.abc import Collection
from dataclasses import replace
from urllib.parse import urlsplit

from durably.cli.output.text import CliError
from durably.engine.core.errors import EngineError
from durably.engine.dashboard.dashboard import Dashboard
from durably.engine.dashboard.messages import DashboardRequest, DashboardResponse
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


class _BehindPrefix:
    """A dashboard whose proxy removes the beginning of its paths. Its links have it."""

    def __init__(self, server: DashboardServer, prefix: str) -> None:
        self._server, self._prefix = server, prefix

    async def handle(self, request: DashboardRequest) -> DashboardResponse:
        return await self._server.handle(replace(request, mount=self._prefix))


def read_sign_in(
    key: str | None,
    header: str | None,
    proxies: Collection[str],
    *,
    viewer_key: str | None = None,
    url: str | None = None,
    other_keys: Collection[str | None],
) -> SignIn | None:
    """The sign-in of the dashboard, ``None`` if it is off.

    ``other_keys`` are those of the engine. The path of ``url`` is a prefix that a proxy removes. Raises ``CliError``.
    """
    if key is not None and header is not None:
        raise CliError(f"--dashboard-key ({DASHBOARD_KEY}) and --dashboard-proxy-header exclude each other")
    if proxies and header is None and key is None:
        raise CliError(
            "--dashboard-proxy needs --dashboard-proxy-header, the header that the proxy sets, or --dashboard-key"
        )
    if viewer_key is not None and key is None:
        raise CliError("--dashboard-viewer-key needs --dashboard-key, the key of people who may change something")
    if viewer_key is not None and viewer_key == key:
        raise CliError("--dashboard-viewer-key and --dashboard-key must differ")
    if any(given is not None and given in other_keys for given in (key, viewer_key)):
        raise CliError(
            "the dashboard's key must not be another key of the engine, because people enter it in browsers: "
            "`durably keys --dashboard` makes one of its own"
        )
    try:
        for given in (key, viewer_key):
            if given is not None:
                check_key(given)
        if header is not None:
            check_header(header)
        networks = [read_network(text) for text in proxies]
    except EngineError as error:
        raise CliError(error.message) from None

    prefix = "" if url is None else urlsplit(url).path.rstrip("/")

    def sign_in(dashboard: Dashboard) -> DashboardServer:
        if key is None:
            server: DashboardServer = ProxySignIn(dashboard, header or "", networks)
        else:
            server = KeySignIn(dashboard, key, viewer_key=viewer_key, proxies=networks)
        return _BehindPrefix(server, prefix) if prefix else server

    return None if key is None and header is None else sign_in
