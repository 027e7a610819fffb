"""The routes of the HTTP API, as an aiohttp application."""

from collections.abc import Sequence

from aiohttp import hdrs, web

from durably.engine.engine import EmbeddedEngine
from durably.protocol.headers import Header, ServerKind
from durably.protocol.limits import MAX_REQUEST_BYTES

from . import access, events, functions, info, runs, sdk_routes, sync
from .access import EVENTS_PATH, AllowedHosts, ApiKeys, authorize
from .conflicts import AppConflicts
from .failures import HEALTH_PATH, answer_expectation, answer_unrouted, failures_as_json, refuse_once_stopped
from .state import STATE, AcceptedSync, ApiState, OnSync, SyncAt

_ROUTES = (
    web.get(HEALTH_PATH, info.get_health),
    web.get("/ready", info.get_readiness),
    web.post(EVENTS_PATH, events.receive_events),
    web.post("/fn/register", sync.register),
    web.post("/invoke/{function_id}", runs.invoke_function),
    web.get("/v0/runs/{run_id}/batch", runs.get_run_batch),
    web.get("/v0/runs/{run_id}/actions", runs.get_run_actions),
    web.get("/v1/events", events.list_events),
    web.get("/v1/events/{event_id}", events.get_event),
    web.get("/v1/events/{event_id}/runs", events.list_event_runs),
    web.get("/v1/updates", info.stream_updates),
    web.get("/v1/runs", runs.list_runs),
    web.get("/v1/runs/{run_id}", runs.get_run),
    web.delete("/v1/runs/{run_id}", runs.cancel_run),
    web.get("/v1/runs/{run_id}/jobs", runs.list_run_jobs),
    web.post("/v1/runs/{run_id}/metadata", sdk_routes.add_metadata),
    web.get("/v1/runs/{run_id}/metadata", sdk_routes.list_metadata),
    web.get("/v1/runs/{run_id}/traces", sdk_routes.list_traces),
    web.post("/v1/traces/userland", sdk_routes.add_traces),
    web.get("/v1/runs/{run_id}/steps", runs.list_run_steps),
    web.get("/v1/runs/{run_id}/attempts", runs.list_run_attempts),
    web.post("/v1/runs/{run_id}/rerun", runs.rerun),
    web.post("/v1/signals", sdk_routes.send_signal),
    web.get("/v1/functions", functions.list_functions),
    web.post("/v1/functions/{function_id}/pause", functions.pause_function),
    web.post("/v1/functions/{function_id}/resume", functions.resume_function),
    web.post("/v1/cancellations", functions.cancel_runs),
    web.get("/v1/cancellations", functions.list_cancellations),
    web.get("/v1/cancellations/{cancellation_id}", functions.get_cancellation),
    web.delete("/v1/cancellations/{cancellation_id}", functions.delete_cancellation),
    web.post("/v1/replays", functions.replay_runs),
    web.get("/v1/replays", functions.list_replays),
    web.get("/v1/replays/{replay_id}", functions.get_replay),
    web.get("/v1/apps/{app_id}/functions", sync.list_functions),
    web.post("/v1/apps/sync", sync.sync_app),
    web.post("/v1/checkpoint/{run_id}/async", sdk_routes.checkpoint_call),
)
_DEV_ROUTES = (
    web.get("/dev", info.get_dev_info),
    web.options(EVENTS_PATH, access.preflight),
)


def ignore_sync(sync: AcceptedSync) -> None:
    """The ``on_sync`` of those who do not care."""


async def _is_never_alive(url: str) -> bool:
    """The answer of an engine that does not reach its apps by URLs."""
    return False


_LOCAL = AllowedHosts()


def create_api(
    engine: EmbeddedEngine,
    keys: ApiKeys,
    *,
    hosts: AllowedHosts = _LOCAL,
    on_sync: OnSync = ignore_sync,
    sync_at: SyncAt | None = None,
    conflicts: AppConflicts | None = None,
) -> web.Application:
    """The API of an open engine. Serve it without an access log, because paths of ``/e/`` contain event keys.

    ``hosts`` are the allowed hosts of a development engine. ``sync_at`` syncs apps, if they have URLs.
    """
    app = web.Application(
        middlewares=[failures_as_json, authorize(keys, hosts), refuse_once_stopped],
        client_max_size=MAX_REQUEST_BYTES,
    )
    conflicts = conflicts or AppConflicts(engine, _is_never_alive)
    app[STATE] = ApiState(engine, keys.server_kind, on_sync, sync_at, conflicts)
    app.add_routes(_expecting(_ROUTES))
    app.add_routes(_expecting(sdk_routes.routes()))
    app.on_response_prepare.append(_add_server_kind)
    if keys.server_kind is ServerKind.DEV:
        app.add_routes(_expecting(_DEV_ROUTES))
        app.on_response_prepare.append(access.allow_any_origin)
    app.add_routes(_expecting([web.route(hdrs.METH_ANY, "/{path:.*}", answer_unrouted)]))
    return app


def _expecting(routes: Sequence[web.RouteDef]) -> list[web.RouteDef]:
    return [
        web.RouteDef(route.method, route.path, route.handler, {**route.kwargs, "expect_handler": answer_expectation})
        for route in routes
    ]


async def _add_server_kind(request: web.Request, response: web.StreamResponse) -> None:
    response.headers[Header.SERVER_KIND] = request.config_dict[STATE].server_kind
