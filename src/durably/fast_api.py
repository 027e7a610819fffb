"""Serving functions in a FastAPI app."""

from collections.abc import Sequence
from typing import Any, Unpack

try:
    import fastapi
except ImportError as error:
    raise ImportError('durably.fast_api needs FastAPI: pip install "durably[fast-api]"') from error

from durably.comm.serve_options import ServeOptions
from durably.functions.function import Function

from .client import Client
from .starlette import dashboard as dashboard
from .starlette import serve_as
from .starlette import streams as streams
from .starlette import webhook as webhook

FRAMEWORK = "fast_api"


def serve(
    app: fastapi.FastAPI, client: Client, functions: Sequence[Function[Any]], **options: Unpack[ServeOptions]
) -> None:
    """Add the endpoint that engines call, by default at ``/api/inngest``.

    The options are those of ``durably.starlette.serve``.
    """
    serve_as(FRAMEWORK, app, client, functions, options)
