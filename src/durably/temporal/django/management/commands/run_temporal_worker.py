"""``manage.py run_temporal_worker``."""

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import autoreload

from durably.errors import Error
from durably.temporal.django.conf import get_temporal
from durably.temporal.django.discovery import discover
from durably.temporal.worker_process import run_worker_process
from durably.temporal.workers import Workers


class Command(BaseCommand):  # type: ignore[misc]
    help = (
        "Runs the workflows and activities of workflows.py and activities.py in the installed apps, until SIGTERM or "
        "Ctrl-C; then activities may end, and are cancelled after --grace. A server that is away is waited for."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--task-queue", action="append", default=[], metavar="NAME", help="Only this one. May be repeated."
        )
        parser.add_argument(
            "--grace",
            type=float,
            default=30.0,
            metavar="SECONDS",
            help="How long running activities may take to end when the worker is stopped (default: 30).",
        )
        parser.add_argument("--health", metavar="HOST:PORT", help="Serve /live and /ready here.")
        parser.add_argument("--metrics", metavar="HOST:PORT", help="Serve /metrics to Prometheus here.")
        parser.add_argument("--reload", action="store_true", help="Restart when source changes, as runserver does.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["reload"]:
            autoreload.run_with_reloader(self._run, **options)
        else:
            self._run(**options)

    def _run(self, **options: Any) -> None:
        try:
            workers = Workers(
                get_temporal(),
                discover(),
                task_queues=options["task_queue"],
                grace=timedelta(seconds=options["grace"]),
            )
            run_worker_process(workers, say=self._say, health=options["health"], metrics=options["metrics"])
        except Error as error:
            raise CommandError(str(error)) from error

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()
