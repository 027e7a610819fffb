"""The app for ``INSTALLED_APPS``: ``"durably.temporal.django"``.

It has management commands, system checks and the admin's pages.
"""

from django.apps import AppConfig
from django.core import checks


class TemporalConfig(AppConfig):  # type: ignore[misc]
    name = "durably.temporal.django"
    label = "durably_temporal"
    verbose_name = "Temporal"

    def ready(self) -> None:
        from .checks import check, check_deployment

        checks.register(check, "temporal")
        checks.register(check_deployment, "temporal", deploy=True)
