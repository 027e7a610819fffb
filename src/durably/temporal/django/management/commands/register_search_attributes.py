"""``manage.py register_search_attributes``."""

from typing import Any

from django.conf import settings
from django.core.management.base import CommandError
from django.urls import get_resolver

from durably.temporal.client.connection import Temporal
from durably.temporal.commands.declared import REGISTER_OPTIONS, run_register
from durably.temporal.django.commands import ConnectionCommand


class Command(ConnectionCommand):
    help = "Registers the search attributes that the project's gateways and temporal.add_search_attributes() declare."

    click_options = REGISTER_OPTIONS

    def run(self, temporal: Temporal, **options: Any) -> None:
        if getattr(settings, "ROOT_URLCONF", None):
            get_resolver().url_patterns  # noqa: B018  Gateways declare their attributes when the URLs are imported.
        if not run_register(temporal, self.stdout.write, check=options["check"], as_json=options["as_json"]):
            raise CommandError("search attributes are missing, or have another type")
