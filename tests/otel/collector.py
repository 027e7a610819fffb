"""A collector: it receives spans by OTLP over HTTP, as real ones do, and keeps them."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TIMEOUT_SECONDS = 60.0


class Span(NamedTuple):
    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str


class Collector:
    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.metrics: set[str] = set()
        self.spans: list[Span] = []
        self._has_grown = threading.Condition()

    def take(self, path: str, body: bytes) -> None:
        with self._has_grown:
            if path == "/v1/metrics":
                for metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    self.metrics |= {metric.name for scope in metrics.scope_metrics for metric in scope.metrics}
            for exported in ExportTraceServiceRequest.FromString(body).resource_spans if path == "/v1/traces" else ():
                named = {each.key: each.value.string_value for each in exported.resource.attributes}
                for span in (span for scope in exported.scope_spans for span in scope.spans):
                    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                    self.spans.append(Span(named["service.name"], span.name, *ids))
            self._has_grown.notify_all()

    def path_of(self, name: str) -> list[tuple[str, str]]:
        """Service and name of a span and of those that it is within, the outermost first, once all are there."""
        with self._has_grown:
            found = self._has_grown.wait_for(lambda: self._find_path(name), TIMEOUT_SECONDS)
            assert found, self.spans
            return found

    def _find_path(self, name: str) -> list[tuple[str, str]]:
        by_id = {span.span_id: span for span in self.spans}
        path = [span for span in self.spans if span.name == name][:1]
        while path and path[0].parent_id:
            if (parent := by_id.get(path[0].parent_id)) is None:
                return []
            path.insert(0, parent)
        return [(span.service, span.name) for span in path]


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            is_packed = self.headers.get("content-encoding") == "gzip"
            collector.take(self.path, gzip.decompress(body) if is_packed else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: what was received is kept."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield collector
        server.shutdown()
