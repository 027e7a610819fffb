"""``manage.py register_search_attributes``."""

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.urls import get_resolver

from durably.temporal.client.connection import Temporal
from durably.temporal.commands import JSON_OPTION, run_register
from durably.temporal.django.management import ConnectionCommand


class Command(ConnectionCommand):
    help = "Registers the search attributes that the project's gateways and temporal.add_search_attributes() declare."

    click_options = (JSON_OPTION,)

    def run(self, temporal: Temporal, options: Mapping[str, Any]) -> None:
        if getattr(settings, "ROOT_URLCONF", None):
            get_resolver().url_patterns  # noqa: B018  Gateways declare their attributes when the URLs are imported.
        run_register(temporal, self.print_line, as_json=options["as_json"])
