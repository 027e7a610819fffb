"""The pages of the dashboard, and the actions on them. One module for each."""

from . import bulk, events, functions, overview, run, runs

_ALL = (
    *overview.ROUTES,
    *runs.ROUTES,
    *run.ROUTES,
    *functions.ROUTES,
    *bulk.ROUTES,
    *events.ROUTES,
)
# Longer patterns first: an id of a function may contain slashes.
ROUTES = tuple(sorted(_ALL, key=lambda route: -route.pattern.count("/")))
