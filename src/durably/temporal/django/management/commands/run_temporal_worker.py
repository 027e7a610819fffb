"""``manage.py run_temporal_worker``."""

import argparse
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandParser
from django.utils import autoreload

from durably.temporal.client.connection import Temporal
from durably.temporal.commands import WORKER_OPTIONS
from durably.temporal.django.conf import connections
from durably.temporal.django.management import ConnectionCommand
from durably.temporal.django.worker import discover
from durably.temporal.worker.process import run_worker_process
from durably.temporal.worker.workers import Workers


class Command(ConnectionCommand):
    help = (
        "Runs the workflows and activities of workflows.py and activities.py in the installed apps, until SIGTERM or "
        "Ctrl-C; then activities may end, and are cancelled after --grace. If the server is unreachable, the worker "
        "waits for it."
    )

    click_options = WORKER_OPTIONS

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--list-connections",
            action="store_true",
            help="Run nothing: print the connections that have workers, with their namespaces, as JSON on one line.",
        )
        # For `durably temporal dev`, which runs the other workers too.
        parser.add_argument("--no-connection-notes", action="store_true", help=argparse.SUPPRESS)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["list_connections"]:
            found = [name for name in connections if discover(name)]
            rows = [{"name": name, "namespace": connections[name].settings.namespace} for name in found]
            self.print_line(json.dumps(rows))
        elif options["reload"]:
            autoreload.run_with_reloader(super().handle, **options)
        else:
            super().handle(**options)

    def run(self, temporal: Temporal, options: Mapping[str, Any]) -> None:
        name = options["connection"]
        workers = Workers(
            temporal,
            discover(name),
            task_queues=options["task_queues"],
            grace=timedelta(seconds=options["grace"]),
        )
        for other in connections:
            if not options["no_connection_notes"] and other != name and discover(other):
                self.print_line(f"not working for the connection {other}: its worker is --connection {other}")
        run_worker_process(
            temporal, workers, print_line=self.print_line, health=options["health"], metrics=options["metrics"]
        )
