"""Lines of ``ctx.logger`` name app, function, run and step, in every framework, server and thread."""

from . import app_calls
from .servers import Server


def test_a_line_of_a_step_has_its_fields(server: Server, kind: str) -> None:
    body = app_calls.call_body(run_id=f"01RUN{server.name}")
    [op] = app_calls.call(server.url("dev"), f"app-dev-fields-{kind}", body).json
    assert op["data"] == {
        "app_id": "app-dev",
        "function_id": f"app-dev-fields-{kind}",
        "run_id": f"01RUN{server.name}",
        "step_id": "log",
        "line": f"[app-dev-fields-{kind} 01RUN{server.name} log] paid 42",
    }
