"""The model of the admin's pages and permissions.

It has no table: workflows are on the Temporal server.
"""

from django.db import models


class Workflow(models.Model):  # type: ignore[misc]
    """A workflow of the server. The admin needs only its id."""

    workflow_id = models.CharField(max_length=1000, primary_key=True)

    class Meta:
        managed = False
        default_permissions = ("view",)
        permissions = (
            ("cancel_workflow", "Can cancel workflow"),
            ("signal_workflow", "Can signal workflow"),
            ("terminate_workflow", "Can terminate workflow"),
            ("view_payloads", "Can view inputs and results of workflows"),
        )

    def __str__(self) -> str:
        return str(self.workflow_id)
