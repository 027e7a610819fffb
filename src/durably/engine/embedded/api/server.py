"""Listening: one address, no access log (the paths of ``/e/`` hold event keys), a prompt end."""

import errno
import ipaddress

from aiohttp import web

from durably.engine.errors import EngineError

SHUTDOWN_SECONDS = 2.0
"""How long requests under way may take once the server closes."""


class PortTakenError(EngineError):
    """Something else listens at the address already."""


class ApiServer:
    """Serves an application until closed. ``origin`` is how clients on this machine reach it."""

    def __init__(self, runner: web.AppRunner, host: str, port: int) -> None:
        self._runner, self.host, self.port = runner, host, port

    @property
    def origin(self) -> str:
        return f"http://{_reachable(self.host)}:{self.port}"

    @classmethod
    async def start(cls, app: web.Application, *, host: str, port: int) -> "ApiServer":
        """``port`` 0 takes a free one. Raises ``PortTakenError``, or ``OSError`` for a host that is not ours."""
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                raise PortTakenError(f"port {port} of {host} is taken by another program") from None
            raise
        return cls(runner, host, runner.addresses[0][1])

    async def close(self) -> None:
        await self._runner.cleanup()


def _reachable(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1"
    return f"[{address}]" if address.version == 6 else host
