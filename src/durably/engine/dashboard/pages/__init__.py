"""The pages of the dashboard, and the actions on them. One module for each."""

from . import events, run, run_actions, run_values, runs

ROUTES = (*runs.ROUTES, *run.ROUTES, *run_actions.ROUTES, *run_values.ROUTES, *events.ROUTES)
