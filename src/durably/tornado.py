"""Serving functions in a Tornado application."""

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

try:
    import tornado.ioloop
    import tornado.iostream
    import tornado.web
except ImportError as error:
    raise ImportError('durably.tornado needs Tornado: pip install "durably[tornado]"') from error

from durably.comm.serve_options import StreamingOption, mount_path, serves
from durably.functions.function import Function
from durably.io.background_loop import running_loop
from durably.io.bodies import check_length, check_size

from .client import Client
from .comm import CommHandler, CommRequest, CommResponse
from .engines import InProcessEngine
from .errors import BodyTooLargeError

FRAMEWORK = "tornado"


@serves("durably.tornado")
def serve(
    app: tornado.web.Application,
    client: Client,
    functions: Sequence[Function[Any]],
    *,
    enable_unauthed_sync: bool | None = None,
    public_path: str | None = None,
    serve_origin: str | None = None,
    serve_path: str | None = None,
    streaming: StreamingOption = None,
) -> None:
    """Add the endpoint that engines call, by default at ``/api/inngest``.

    The arguments are those of ``durably.fast_api.serve``. Async functions run on Tornado's own event loop,
    sync ones in a thread pool.
    """
    handler = CommHandler(
        client=client,
        framework=FRAMEWORK,
        functions=functions,
        streaming=streaming,
        enable_unauthed_sync=enable_unauthed_sync,
        serve_origin=serve_origin,
        serve_path=serve_path,
        public_path=public_path,
    )

    @tornado.web.stream_request_body
    class DurablyHandler(tornado.web.RequestHandler):
        async def prepare(self) -> None:  # before the body is read
            self._chunks: list[bytes] = []
            self._size = 0
            self._is_refused = False
            await self._check(check_length, self.request.headers.get("content-length"))

        async def data_received(self, chunk: bytes) -> None:
            if self._is_refused:
                return
            self._size += len(chunk)
            if await self._check(check_size, self._size):
                self._chunks.append(chunk)

        async def _check(self, check: Callable[[Any], None], size: Any) -> bool:
            """False if the body is too large, and its request refused."""
            try:
                check(size)
            except BodyTooLargeError as error:
                self._is_refused = True
                self.set_header("connection", "close")
                await self._write(handler.refuse(error))
                return False
            return True

        def check_xsrf_cookie(self) -> None:
            """Engines have no cookies; their requests are signed."""

        async def _answer(self) -> None:
            request = self.request
            comm_request = CommRequest(
                body=b"".join(self._chunks),
                headers=dict(request.headers.items()),
                query_params={k: v[0].decode(errors="replace") for k, v in request.query_arguments.items()},
                raw_request=request,
                request_url=request.full_url(),
            )
            await self._write(await handler.handle(request.method or "", comm_request))

        get = post = put = _answer

        async def _write(self, response: CommResponse) -> None:
            self.set_status(response.status_code)
            for name, value in response.headers.items():
                self.set_header(name, value)
            if response.stream is None:
                self.finish(response.body)
                return
            async with aclosing(response.stream()) as chunks:
                async for chunk in chunks:
                    self.write(chunk)
                    try:
                        await self.flush()
                    except tornado.iostream.StreamClosedError:
                        return

    if client.in_process is not None:
        _start_with_loop(app, client.in_process)
    app.add_handlers(r".*", [(re.escape(mount_path(serve_path)), DurablyHandler)])


def _start_with_loop(app: tornado.web.Application, engine: InProcessEngine) -> None:
    """Start now if the event loop runs.

    Otherwise start when it runs after ``listen``, or with the first request.
    """
    if (running := running_loop()) is not None:
        engine.start_with_request(running)
        return
    listen, start_request = app.listen, app.start_request

    def start() -> None:
        engine.start_with_request(asyncio.get_running_loop())

    def listen_and_start(*args: Any, **options: Any) -> Any:
        server = listen(*args, **options)
        tornado.ioloop.IOLoop.current().add_callback(start)
        return server

    def start_with_request(*args: Any) -> Any:
        start()
        return start_request(*args)

    app.listen = listen_and_start  # type: ignore[method-assign]
    app.start_request = start_with_request  # type: ignore[method-assign, assignment]
