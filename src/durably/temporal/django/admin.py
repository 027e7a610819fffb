"""The admin's pages of Temporal.

They are a list of workflows, and a page of one workflow with cancel, terminate and signal.

The pages need Django's permissions ``durably_temporal.view_workflow``, ``view_payloads``, ``cancel_workflow``,
``terminate_workflow`` and ``signal_workflow``. Actions are in the admin's log. ``connection`` in the URL is one of
several connections.
"""

import datetime as dt
import functools
import json
from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.http import urlencode
from django.views.decorators.http import require_POST
from temporalio.client import Client
from temporalio.service import RPCError

from durably.errors import Error
from durably.temporal.client.connection import Temporal
from durably.temporal.client.sync import SyncWorkflowHandle
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.gateway.authorization import principal_key
from durably.temporal.gateway.lists import status_of
from durably.temporal.gateway.problems import EXCEPTIONS, Problem, to_problem
from durably.temporal.gateway.services import Pages, PageTokens

from .conf import DEFAULT_CONNECTION, connections, project_secrets
from .models import Workflow
from .worker import signals_by_workflow
from .workflow_pages import (
    ATTRIBUTE_FILTER,
    PERIODS,
    RPC_TIMEOUT,
    STATUSES,
    TEXT_FILTERS,
    RunLink,
    fetch_details,
    fetch_rows,
    run_in_ui,
    search,
)

View = Callable[..., HttpResponse]

_SHOWN: tuple[type[Exception], ...] = (*EXCEPTIONS, TemporalSettingsError, Problem)


def _problems_shown(view: View) -> View:
    """Show errors of the server and the settings as a page of the admin.

    The page has the status of the error.
    """

    @functools.wraps(view)
    def show(self: Any, request: Any, *args: Any, **options: Any) -> HttpResponse:
        try:
            return view(self, request, *args, **options)
        except _SHOWN as error:
            status = 500 if isinstance(error, TemporalSettingsError) else to_problem(error).status
            # Users of the admin may read more than other users, such as the server's address.
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
            "signal": _signal,
        }
        return [
            path("", protected(self.changelist_view), name=f"{names}_changelist"),
            path("<path:object_id>/change/", protected(self.workflow_view), name=f"{names}_change"),
            path("<path:object_id>/terminate/", protected(self.terminate_view), name=f"{names}_terminate"),
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
        self._require(request, "view_workflow")
        connection, temporal = _connection(request)
        filters = {name: request.GET.get(name, "") for name in ("status", "started", *TEXT_FILTERS, *ATTRIBUTE_FILTER)}
        query, problems = search(filters, dt.datetime.now(dt.UTC), [each.key for each in temporal.search_attributes])
        pages = _pages(request, "list", connection, *(f"{name}={value}" for name, value in filters.items()))
        page = None
        if not problems:
            try:
                page = temporal.sync.run(lambda client: fetch_rows(client, query, request.GET.get("page"), pages))
            except (Problem, RPCError) as error:
                # The server refuses the user's value, not a page of the list.
                if not request.GET.get("value") or request.GET.get("page") or to_problem(error).status != 400:
                    raise
                problems["value"] = to_problem(error).detail
        choices = [
            ("By status", _links(request, "status", STATUSES)),
            ("Started", _links(request, "started", PERIODS, {each: f"past {each}" for each in PERIODS})),
        ]
        if len(connections) > 1:
            # Without the other filters: task queues and types belong to a connection.
            links = [
                {"text": name, "url": f"?connection={name}", "is_chosen": name == connection} for name in connections
            ]
            choices.insert(0, ("By connection", links))
        context = {
            "title": "Workflows",
            "rows": [
                {"row": row, "status": status_of(row), "url": self._url(connection, row.id, row.run_id)}
                for row in (page.rows if page else ())
            ],
            "page": page,
            "filters": filters,
            "problems": problems,
            "choices": choices,
            "connection": connection if len(connections) > 1 else "",
            "next": _with(request, page=page.next_page) if page and page.next_page else None,
            "settings": temporal.settings,
        }
        return self._render(request, "workflows", context, 400 if problems else None)

    @_problems_shown
    def workflow_view(self, request: Any, object_id: str) -> HttpResponse:
        self._require(request, "view_workflow")
        connection, temporal = _connection(request)
        workflow_id, run_id = unquote(object_id), request.GET.get("run") or None
        may = {action: self._may(request, f"{action}_workflow") for action in ("cancel", "terminate", "signal")}
        may["view_payloads"] = self._may(request, "view_payloads")

        def pages_of(run: str) -> Pages:
            return _pages(request, "history", connection, workflow_id, run)

        async def fetch(client: Client) -> Any:
            return await fetch_details(
                client,
                client.get_workflow_handle(workflow_id, run_id=run_id),
                request.GET.get("page"),
                pages_of,
                with_payloads=may["view_payloads"],
            )

        details = temporal.sync.run(fetch)
        context = {
            "title": workflow_id,
            "details": details,
            "status": status_of(details.workflow),
            "links": [{"link": link, "url": self._link_url(connection, link)} for link in details.links],
            "events": [
                {"event": event, "link": link, "url": self._link_url(connection, link)}
                for event, link in details.events
            ],
            "ui_url": run_in_ui(temporal, connection, workflow_id, details.workflow.run_id),
            "quoted_id": quote(workflow_id),
            "connection": connection,
            "terminate_url": self._url(connection, workflow_id, details.workflow.run_id, "terminate"),
            "signals": signals_by_workflow(connection).get(details.workflow.workflow_type, ()),
            "next": _with(request, page=details.next_page, run=details.workflow.run_id) if details.next_page else None,
            "may": may,
        }
        return self._render(request, "workflow", context)

    @_problems_shown
    def terminate_view(self, request: Any, object_id: str) -> HttpResponse:
        """A page that asks for confirmation. Its form terminates the run."""
        self._require(request, "view_workflow")
        self._require(request, "terminate_workflow")
        if request.method == "POST":
            answer: HttpResponse = self.act("terminate", _terminate, request, object_id)
            return answer
        connection, temporal = _connection(request)
        handle = temporal.sync.get_workflow_handle(unquote(object_id), run_id=request.GET.get("run") or None)
        described = handle.describe(rpc_timeout=RPC_TIMEOUT)
        context = {
            "title": "Terminate the workflow?",
            "row": described,
            "status": status_of(described),
            "connection": connection,
            "back": self._url(connection, described.id, described.run_id),
        }
        return self._render(request, "terminate", context)

    @_problems_shown
    def act(self, action: str, call: Callable[[Any, Any], str | None], request: Any, object_id: str) -> HttpResponse:
        """Run an action on the run of the page.

        Write the action to the admin's log, and redirect to the page.
        """
        self._require(request, "view_workflow")
        self._require(request, f"{action}_workflow")
        connection, temporal = _connection(request)
        workflow_id, run_id = unquote(object_id), request.POST.get("run") or None
        handle = temporal.sync.get_workflow_handle(workflow_id, run_id=run_id)
        try:
            what = call(handle, request) or ""
        except ValueError as error:
            messages.error(request, str(error))
        else:
            done = f"Asked to {action} {what}".strip()
            place = "" if connection == DEFAULT_CONNECTION else f", connection {connection}"
            self.log_change(request, Workflow(workflow_id=workflow_id), f"{done}, run {run_id}{place}.")
            messages.success(request, f"{done}: {workflow_id}.")
        return HttpResponseRedirect(self._url(connection, workflow_id, run_id or ""))

    def _link_url(self, connection: str, link: RunLink | None) -> str | None:
        """``None`` for a run in another namespace than the connection's."""
        if link is None or link.namespace is not None:
            return None
        return self._url(connection, link.workflow_id, link.run_id)

    def _url(self, connection: str, workflow_id: str, run_id: str, page: str = "change") -> str:
        """The page of a run."""
        here: str = reverse(f"{self.admin_site.name}:durably_temporal_workflow_{page}", args=[quote(workflow_id)])
        query = {"run": run_id, "connection": "" if connection == DEFAULT_CONNECTION else connection}
        given = urlencode({name: value for name, value in query.items() if value})
        return f"{here}?{given}" if given else here

    def _render(self, request: Any, template: str, context: dict[str, Any], status: int | None = None) -> HttpResponse:
        request.current_app = self.admin_site.name
        context = {**self.admin_site.each_context(request), "opts": self.opts, **context}
        return TemplateResponse(request, f"durably_temporal/{template}.html", context, status=status)

    def _may(self, request: Any, permission: str) -> bool:
        return bool(request.user.has_perm(f"{self.opts.app_label}.{permission}"))

    def _require(self, request: Any, permission: str) -> None:
        if not self._may(request, permission):
            raise PermissionDenied


@functools.cache
def _page_tokens() -> PageTokens:
    return PageTokens()


def _pages(request: Any, *scope: str) -> Pages:
    """Page tokens that are valid for this user and ``scope``."""
    return _page_tokens().of(("admin", principal_key(request.user), *scope), project_secrets())


def _connection(request: Any) -> tuple[str, Temporal]:
    """The connection of a page.

    Raises ``Http404``, and ``TemporalSettingsError`` for invalid settings.
    """
    given = request.POST if request.method == "POST" else request.GET
    name = given.get("connection") or DEFAULT_CONNECTION
    if name not in connections:
        raise Http404(f"There is no connection {name!r} to Temporal.")
    return name, connections[name]


def _terminate(handle: SyncWorkflowHandle[Any, Any], request: Any) -> None:
    handle.terminate(reason=_reason(request), rpc_timeout=RPC_TIMEOUT)


def _reason(request: Any) -> str:
    """The reason, with the user's name: it appears in the workflow's history."""
    reason = str(request.POST.get("reason", "")).strip()[:1000]
    by = f"by {request.user.get_username()} in the admin"
    return by if not reason else f"{reason} ({by})"


def _signal(handle: SyncWorkflowHandle[Any, Any], request: Any) -> str:
    """Send the signal of a form. Raises ``ValueError`` for invalid input."""
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
    """The page's own query with changes. An empty value removes a parameter."""
    query = request.GET.copy()
    for name, value in changes.items():
        query.pop(name, None)
        if value:
            query[name] = value
    return "?" + str(query.urlencode())
