"""Errors of Temporal in the project's own views, as problem documents."""

from django.http import HttpRequest, HttpResponse
from django.utils.deprecation import MiddlewareMixin

from durably.temporal.gateway.problems import EXCEPTIONS, to_problem


class TemporalErrorMiddleware(MiddlewareMixin):  # type: ignore[misc]
    """Answers what ``temporalio`` and the connection raise; for ``MIDDLEWARE``. Other errors are left to Django."""

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, EXCEPTIONS):
            return None
        response = to_problem(error).response()
        return HttpResponse(response.body, status=response.status_code, headers=response.headers)
