"""The pages of the dashboard, and the actions on them. One module for each."""

from . import apps, bulk, cron, events, functions, overview, run, run_actions, run_values, runs, selected_runs

_ALL = (
    *overview.ROUTES,
    *runs.ROUTES,
    *selected_runs.ROUTES,
    *run.ROUTES,
    *run_actions.ROUTES,
    *run_values.ROUTES,
    *functions.ROUTES,
    *bulk.ROUTES,
    *events.ROUTES,
    *apps.ROUTES,
    *cron.ROUTES,
)
# Longer patterns first: an id of a function may contain slashes.
ROUTES = tuple(sorted(_ALL, key=lambda route: -route.pattern.count("/")))
