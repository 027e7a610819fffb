"""The model of the dashboard's permissions and of its link in the admin.

It has no table.
"""

from django.db import models


class Dashboard(models.Model):  # type: ignore[misc]
    """The dashboard's permissions.

    ``view_dashboard`` allows seeing it, ``change_dashboard`` using its actions.
    """

    class Meta:
        managed = False
        default_permissions = ("view", "change")
        verbose_name_plural = "dashboard"
