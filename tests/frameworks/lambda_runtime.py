"""The API from which a process of AWS Lambda's own runtime (``awslambdaric``) takes events, played by a test."""

import json
import queue
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_API = "/2018-06-01/runtime"
_PATIENCE = 60.0


class LambdaRuntime:
    """Hands an event to one of the processes that ask for one, and returns what its function returned."""

    def __init__(self) -> None:
        self._events: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._results: dict[str, queue.Queue[Any]] = {}

    def invoke(self, event: dict[str, Any], _: object) -> Any:
        request_id = str(uuid.uuid4())
        result = self._results[request_id] = queue.Queue()
        self._events.put((request_id, event))
        return result.get(timeout=_PATIENCE)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The host and port, for ``AWS_LAMBDA_RUNTIME_API``."""
        runtime = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                assert self.path == f"{_API}/invocation/next"
                request_id, event = runtime._events.get()
                self._answer(
                    200,
                    event,
                    ("lambda-runtime-aws-request-id", request_id),
                    ("lambda-runtime-deadline-ms", str(int((time.time() + _PATIENCE) * 1000))),
                    ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:eu-central-1:000000000000:function:shop"),
                )

            def do_POST(self) -> None:
                found = json.loads(self.rfile.read(int(self.headers["content-length"])))
                *_, request_id, outcome = self.path.split("/")
                # Behind a function URL, an error of the function is a "502 Bad Gateway".
                result = found if outcome == "response" else {"statusCode": 502, "body": found}
                runtime._results.pop(request_id).put(result)
                self._answer(202, {"status": "OK"})

            def _answer(self, status: int, content: Any, *headers: tuple[str, str]) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                for name, value in (*headers, ("content-type", "application/json"), ("content-length", str(len(body)))):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False  # Threads wait for events.

        with Server(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
            yield f"127.0.0.1:{server.server_address[1]}"
            server.shutdown()
