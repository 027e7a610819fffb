"""A web app that does nothing: bare, or with an engine in its process. The arguments: the framework, what it has."""

import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.children import Answerer, serve
from benchmarks.database import DATABASE


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    name, kind = arguments
    framework: Any = import_module("fastapi" if name == "fast_api" else name)
    import_module("uvicorn" if name == "fast_api" else "werkzeug.serving")
    app = framework.FastAPI() if name == "fast_api" else framework.Flask("app")
    async with AsyncExitStack() as stack:
        if kind == "embedded":
            import durably

            engine = durably.Embedded(directory / DATABASE)
            client = durably.Client(app_id="benchmark", is_production=False, engine=engine)

            @client.create_function(fn_id="idle", trigger=durably.TriggerEvent(event="benchmark/run"))
            def idle(ctx: durably.ContextSync) -> None:
                """Never runs."""

            import_module(f"durably.{name}").serve(app, client, [idle])
            await stack.enter_async_context(engine.running())
        yield "ready", _collect


async def _collect(question: dict[str, Any]) -> None:
    gc.collect()


if __name__ == "__main__":
    serve(open_contender)
