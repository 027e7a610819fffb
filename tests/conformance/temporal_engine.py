"""An engine in development mode on Temporal's development server, for the tests to speak to.

``python -m tests.conformance.temporal_engine PORT`` starts both.
"""

import asyncio
import signal
import sys

from durably.engine.http.server import EngineServer
from durably.engine.settings import EngineSettings
from durably.engine.temporal.converter import DATA_CONVERTER
from durably.engine.temporal.http_engine import HttpWorkflowEngine
from durably.temporal import Temporal

from ..temporal.dev_server import DevServer


async def serve(address: str, port: int) -> None:
    settings = EngineSettings(allow_private_addresses=True)
    client = await Temporal(address, data_converter=DATA_CONVERTER).connect()

    stopped = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stopped.set)
    async with await EngineServer.open_on(lambda: HttpWorkflowEngine.open(client, settings), settings, port=port):
        await stopped.wait()


def main(port: int) -> None:
    server = DevServer()
    server.start()
    try:
        asyncio.run(serve(server.address, port))
    finally:
        server.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]))
