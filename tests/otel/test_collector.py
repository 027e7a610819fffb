"""Spans of ``durably dev --otel`` and of its app, received by a collector from both processes."""

import signal
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner

from durably.cli.dev import dev

from ..cli.conftest import Command, environment, write
from ..temporal.dev_server import DevServer
from ..variants import variants
from .collector import Collector, collecting

APP = """
    import durably
    import durably.fast_api
    import durably.otel
    import fastapi
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    client = durably.Client(app_id="shop", is_production=False)
    durably.otel.instrument(client)
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    tracer = trace.get_tracer("web")
    app = fastapi.FastAPI()


    @client.create_function(fn_id="order", trigger=durably.TriggerEvent(event="order"))
    async def order(ctx: durably.Context) -> None:
        await ctx.step.run("charge", lambda: None)


    @app.post("/orders")
    async def place() -> None:
        with tracer.start_as_current_span("place an order"):
            await client.send(durably.Event(name="order"))


    durably.fast_api.serve(app, client, [order])
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.mark.parametrize("state", variants(["SQLite", "Temporal"], ["SQLite"]))
def test_engine_and_app_export_one_trace(tmp_path: Path, collector: Collector, state: str) -> None:
    with DevServer() if state == "Temporal" else nullcontext() as server:
        _check_trace(tmp_path, collector, () if server is None else ("--temporal", server.address))


def _check_trace(tmp_path: Path, collector: Collector, options: tuple[str, ...]) -> None:
    write(tmp_path / "shop.py", APP)
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "PYTHONPATH": str(tmp_path),
    }
    arguments = ("dev", "shop:app", "--port", "0", "--app-port", "0", "--no-reload", "--otel", *options)
    command = Command(arguments, tmp_path, environment() | variables)
    try:
        origin = command.until(r"shop:app is up at (http://[\d.:]+)")[1]
        urllib.request.urlopen(urllib.request.Request(f"{origin}/orders", method="POST")).close()
        # The framework may have spans of its own in between.
        assert [
            span for span in collector.path_of("step charge") if "fastapi" not in span[1] and "/" not in span[1]
        ] == [
            ("shop", "place an order"),
            ("shop", "send order"),
            ("durably-engine", "receive order"),
            ("durably-engine", "run shop-order"),
            ("durably-engine", "call shop-order"),
            ("shop", "process shop-order"),
            ("shop", "step charge"),
        ]
    finally:
        assert command.stop(signal.SIGINT) == 0, command.output
    assert "durably.run.duration" in collector.metrics, command.output  # exported at the end


def test_invalid_exporter_settings_are_refused() -> None:
    variables = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "DURABLY_OTEL": "1"}
    result = CliRunner().invoke(dev, ["--port", "0", "--db", ":memory:"], env=variables)
    assert result.exit_code == 1
    assert "OTEL_EXPORTER_OTLP_PROTOCOL must not be 'grpc'" in result.output


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    result = CliRunner().invoke(dev, ["--otel", "--port", "0", "--db", ":memory:"])
    assert result.exit_code == 1
    assert 'pip install "durably[otel]"' in result.output
