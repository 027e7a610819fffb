"""A function of Google Cloud, for ``functions-framework``, which loads it by its path."""

import os
from typing import Any

from tests.frameworks.apps import mark_request
from tests.frameworks.endpoints import add_endpoint, without_path
from tests.frameworks.variants import serve_all
from tests.frameworks.webhooks import receive_all

import durably.google_cloud

engine = os.environ["TEST_ENGINE"]
functions = serve_all(engine, durably.google_cloud.serve) | receive_all(engine, durably.google_cloud.webhook)
functions |= add_endpoint(engine, without_path(durably.google_cloud.endpoint))


def main(request: Any) -> Any:
    mark_request(request.headers.get("x-name"))
    return functions[request.path](request)
