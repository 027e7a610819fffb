"""The app for ``INSTALLED_APPS``: ``"durably.temporal.django"``.

It has management commands, system checks and the admin's pages.
"""

from django.apps import AppConfig


class TemporalConfig(AppConfig):  # type: ignore[misc]
    name = "durably.temporal.django"
    label = "durably_temporal"
    verbose_name = "Temporal"

    def ready(self) -> None:
        from . import checks

        checks.register()
