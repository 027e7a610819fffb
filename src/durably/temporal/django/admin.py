"""The admin's pages of Temporal: workflows by filters; one of them, to watch, cancel, terminate and signal.

Who may do what are permissions of Django's: ``durably_temporal.view_workflow``, ``cancel_workflow``,
``terminate_workflow`` and ``signal_workflow``. What is done is in the admin's log.
"""

import datetime as dt
import functools
import json
from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.http import require_POST
from temporalio.client import Client

from durably.errors import Error
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.gateway.pages import Pages, PageTokens
from durably.temporal.gateway.principals import principal_key
from durably.temporal.gateway.problems import EXCEPTIONS, Problem, to_problem
from durably.temporal.sync import SyncWorkflowHandle

from .conf import get_temporal, project_secrets
from .discovery import signals_by_workflow
from .models import Workflow
from .workflow_pages import PERIODS, RPC_TIMEOUT, STATUSES, TEXT_FILTERS, fetch_details, fetch_rows, visibility_query

View = Callable[..., HttpResponse]

_SHOWN: tuple[type[Exception], ...] = (*EXCEPTIONS, TemporalSettingsError, Problem)


def _problems_shown(view: View) -> View:
    """What the server or the settings do not allow is a page of the admin, with the right status."""

    @functools.wraps(view)
    def show(self: Any, request: Any, *args: Any, **options: Any) -> HttpResponse:
        try:
            return view(self, request, *args, **options)
        except _SHOWN as error:
            status = 500 if isinstance(error, TemporalSettingsError) else to_problem(error).status
            # Who looks after the app may read what visitors may not, such as the server's address.
            detail = str(error) if isinstance(error, Error) else to_problem(error).detail
            page: HttpResponse = self._render(request, "problem", {"title": "Temporal", "detail": detail}, status)
            return page

    return show


@admin.register(Workflow)
class WorkflowAdmin(admin.ModelAdmin):  # type: ignore[misc]
    def has_add_permission(self, request: Any) -> bool:
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[Any]:
        def protected(view: Any) -> Any:
            return self.admin_site.admin_view(view)

        names = "durably_temporal_workflow"
        do = {
            "cancel": lambda handle, request: handle.cancel(reason=_reason(request), rpc_timeout=RPC_TIMEOUT),
            "terminate": lambda handle, request: handle.terminate(reason=_reason(request), rpc_timeout=RPC_TIMEOUT),
            "signal": _signal,
        }
        return [
            path("", protected(self.changelist_view), name=f"{names}_changelist"),
            path("<path:object_id>/change/", protected(self.workflow_view), name=f"{names}_change"),
            *(
                path(
                    f"<path:object_id>/{action}/",
                    protected(require_POST(functools.partial(self.act, action, call))),
                    name=f"{names}_{action}",
                )
                for action, call in do.items()
            ),
        ]

    @_problems_shown
    def changelist_view(self, request: Any, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        self._require(request, "view")
        filters = {name: request.GET.get(name, "") for name in ("status", "started", "query", *TEXT_FILTERS)}
        query = visibility_query(filters, dt.datetime.now(dt.UTC))
        pages = _pages(request, "list", *(f"{name}={value}" for name, value in filters.items()))
        page = get_temporal().sync.run(lambda client: fetch_rows(client, query, request.GET.get("page"), pages))
        context = {
            "title": "Workflows",
            "page": page,
            "filters": filters,
            "choices": [
                ("By status", _links(request, "status", STATUSES)),
                ("Started", _links(request, "started", PERIODS, {each: f"past {each}" for each in PERIODS})),
            ],
            "next": _with(request, page=page.next_page) if page.next_page else None,
            "settings": get_temporal().settings,
        }
        return self._render(request, "workflows", context)

    @_problems_shown
    def workflow_view(self, request: Any, object_id: str) -> HttpResponse:
        self._require(request, "view")
        workflow_id, run_id = unquote(object_id), request.GET.get("run") or None

        def pages_of(run: str) -> Pages:
            return _pages(request, "history", workflow_id, run)

        async def fetch(client: Client) -> Any:
            handle = client.get_workflow_handle(workflow_id, run_id=run_id)
            return await fetch_details(client, handle, request.GET.get("page"), pages_of)

        details = get_temporal().sync.run(fetch)
        context = {
            "title": workflow_id,
            "details": details,
            "quoted_id": quote(workflow_id),
            "signals": signals_by_workflow().get(details.row.type, ()),
            "next": _with(request, page=details.next_page, run=details.row.run_id) if details.next_page else None,
            "may": {action: self._may(request, action) for action in ("cancel", "terminate", "signal")},
        }
        return self._render(request, "workflow", context)

    @_problems_shown
    def act(self, action: str, call: Callable[[Any, Any], str | None], request: Any, object_id: str) -> HttpResponse:
        """Do it to the run that the page showed, write it to the admin's log, and go back to the page."""
        self._require(request, "view")
        self._require(request, action)
        workflow_id, run_id = unquote(object_id), request.POST.get("run") or None
        handle = get_temporal().sync.get_workflow_handle(workflow_id, run_id=run_id)
        try:
            what = call(handle, request) or ""
        except ValueError as error:
            messages.error(request, str(error))
        else:
            done = f"Asked to {action} {what}".strip()
            self.log_change(request, Workflow(workflow_id=workflow_id), f"{done}, run {run_id}.")
            messages.success(request, f"{done}: {workflow_id}.")
        name = f"{self.admin_site.name}:durably_temporal_workflow_change"
        here = reverse(name, args=[quote(workflow_id)])
        return HttpResponseRedirect(f"{here}?run={run_id}" if run_id else here)

    def _render(self, request: Any, template: str, context: dict[str, Any], status: int | None = None) -> HttpResponse:
        request.current_app = self.admin_site.name
        context = {**self.admin_site.each_context(request), "opts": self.opts, **context}
        return TemplateResponse(request, f"durably_temporal/{template}.html", context, status=status)

    def _may(self, request: Any, action: str) -> bool:
        return bool(request.user.has_perm(f"{self.opts.app_label}.{action}_workflow"))

    def _require(self, request: Any, action: str) -> None:
        if not self._may(request, action):
            raise PermissionDenied


@functools.cache
def _page_tokens() -> PageTokens:
    return PageTokens()


def _pages(request: Any, *scope: str) -> Pages:
    """Page tokens that are valid for this user and ``scope``."""
    return _page_tokens().of(("admin", principal_key(request.user), *scope), project_secrets())


def _reason(request: Any) -> str:
    """Who did it stands in the workflow's history too."""
    reason = str(request.POST.get("reason", "")).strip()[:1000]
    by = f"by {request.user.get_username()} in the admin"
    return by if not reason else f"{reason} ({by})"


def _signal(handle: SyncWorkflowHandle[Any, Any], request: Any) -> str:
    """Raises ``ValueError`` for input that is no signal."""
    name = request.POST.get("name", "").strip()
    if not name:
        raise ValueError("Which signal? It has no name.")
    try:
        arguments = json.loads(request.POST.get("arguments", "").strip() or "[]")
    except ValueError as error:
        raise ValueError(f"The arguments are not JSON: {error}.") from None
    if not isinstance(arguments, list):
        raise ValueError('The arguments are a JSON array, such as ["text", 3].')
    handle.signal(name, args=arguments, rpc_timeout=RPC_TIMEOUT)
    return str(name)


def _links(request: Any, parameter: str, values: Any, labels: dict[str, str] | None = None) -> list[dict[str, Any]]:
    chosen = request.GET.get(parameter, "")
    texts = {"": "All", **{value: (labels or {}).get(value, value.replace("_", " ")) for value in values}}
    return [
        {"text": text, "url": _with(request, **{parameter: value, "page": ""}), "is_chosen": chosen == value}
        for value, text in texts.items()
    ]


def _with(request: Any, **changes: str) -> str:
    """The page's own query, changed; what is empty is left out."""
    query = request.GET.copy()
    for name, value in changes.items():
        query.pop(name, None)
        if value:
            query[name] = value
    return "?" + str(query.urlencode())
