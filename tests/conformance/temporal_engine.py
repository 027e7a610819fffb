"""An engine in development mode on a Temporal server, for the tests to speak to.

``python -m tests.conformance.temporal_engine --port PORT`` starts a development server, too.
"""

import argparse
import asyncio
import signal

from durably.engine.api.http.server import EngineServer
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.engine import HttpWorkflowEngine
from durably.temporal import Temporal

from ..temporal.dev_server import DevServer


async def open_engine(address: str, port: int = 0) -> EngineServer:
    settings = EngineSettings(allow_private_addresses=True)
    client = await Temporal(address, data_converter=DATA_CONVERTER).connect()
    return await EngineServer.open(lambda: HttpWorkflowEngine.open(client, settings), settings, port=port)


async def serve(address: str, port: int) -> None:
    stopped = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stopped.set)
    async with await open_engine(address, port):
        await stopped.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--temporal", metavar="HOST:PORT")
    arguments = parser.parse_args()
    if arguments.temporal is not None:
        asyncio.run(serve(arguments.temporal, arguments.port))
        return
    with DevServer() as server:
        asyncio.run(serve(server.address, arguments.port))


if __name__ == "__main__":
    main()
