"""Responses of Django."""

from typing import Any

from django.http import HttpResponse, StreamingHttpResponse

from durably.django_compat import in_event_loop
from durably.io.background_loop import iterate_sync

from . import ServerResponse, header_pairs


def to_response(response: ServerResponse) -> Any:
    """The response of a view, async under ASGI and sync under WSGI."""
    made: Any
    if response.stream is not None:
        chunks = response.stream()
        made = StreamingHttpResponse(chunks if in_event_loop() else iterate_sync(chunks), status=response.status_code)
    else:
        made = HttpResponse(response.body, status=response.status_code)
        made["content-length"] = str(len(response.body))
    del made["content-type"]  # Django sets a default
    for name, value in header_pairs(response):
        if name.lower() == "set-cookie":
            made.cookies.load(value)
        else:
            made[name] = value
    return made
