"""``"durably.django"`` in ``INSTALLED_APPS``."""

from django.apps import AppConfig
from django.conf import settings


class DurablyConfig(AppConfig):  # type: ignore[misc]
    name = "durably.django"
    label = "durably"
    default_auto_field = "django.db.models.BigAutoField"  # pyright: ignore[reportAssignmentType] (a property in Django)
    verbose_name = "Durably"

    def ready(self) -> None:
        """Let engines in the project's processes call the functions of the project.

        The functions are in each app's ``durable.py``. Commands such as ``migrate`` and test runs start no engine.
        """
        from django.core.signals import request_finished

        from .adapter import discovered, make_handler, report_unserved
        from .outbox import add_relays

        discovered.find()
        if any(
            str(each.get("BACKEND")).startswith("durably.django.") for each in getattr(settings, "TASKS", {}).values()
        ):
            from .tasks import add_functions

            add_functions(discovered)
        request_finished.connect(report_unserved)
        if discovered.clients:
            add_relays(discovered.clients[0])
        for client in discovered.clients:
            if client.in_process is not None:
                make_handler(client, discovered.functions_of(client))
