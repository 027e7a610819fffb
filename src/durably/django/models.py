"""The models: events and results of steps in the project's databases, and the dashboard's permissions."""

from django.db import models

from durably.outbox import EVENTS_TABLE, RESULTS_TABLE


class OutboxEvent(models.Model):  # type: ignore[misc]
    """An event that ``durably.django.send`` has written and no relay has sent yet.

    ``app`` is the id of the app whose relay sends it. ``event`` is its JSON. ``error`` is the reason for which the
    engine has refused it: the relay skips such rows.
    """

    id = models.BigAutoField(primary_key=True)
    app = models.CharField(max_length=255)
    event = models.TextField()
    error = models.TextField(null=True, blank=True)

    class Meta:
        db_table = EVENTS_TABLE
        default_permissions = ("view", "change", "delete")

    def __str__(self) -> str:
        return f"outbox event {self.pk}"


class TransactionResult(models.Model):  # type: ignore[misc]
    """The result of a step with ``durably.django.transaction``, as JSON. ``created`` is in ms since the epoch."""

    id = models.BigAutoField(primary_key=True)
    run_id = models.CharField(max_length=255)
    step_id = models.CharField(max_length=64)
    result = models.TextField(null=True)
    created = models.BigIntegerField(db_index=True)

    class Meta:
        db_table = RESULTS_TABLE
        default_permissions = ()
        constraints = (models.UniqueConstraint(fields=("run_id", "step_id"), name="durably_transactions_step"),)


class Dashboard(models.Model):  # type: ignore[misc]
    """The dashboard's permissions. It has no table.

    ``view_dashboard`` allows seeing it, ``change_dashboard`` using its actions.
    """

    class Meta:
        managed = False
        default_permissions = ("view", "change")
        verbose_name_plural = "dashboard"
