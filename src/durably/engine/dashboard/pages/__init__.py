"""The pages of the dashboard, and the actions on them. One module for each."""

from . import run, runs

ROUTES = (*runs.ROUTES, *run.ROUTES)
