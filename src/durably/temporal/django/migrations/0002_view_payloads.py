"""No table: the permission to see inputs and results, which ``migrate`` makes."""

from django.db import migrations


class Migration(migrations.Migration):  # type: ignore[misc]
    dependencies = [("durably_temporal", "0001_initial")]
    operations = [
        migrations.AlterModelOptions(
            name="workflow",
            options={
                "managed": False,
                "default_permissions": ("view",),
                "permissions": (
                    ("cancel_workflow", "Can cancel workflow"),
                    ("signal_workflow", "Can signal workflow"),
                    ("terminate_workflow", "Can terminate workflow"),
                    ("view_payloads", "Can view inputs and results of workflows"),
                ),
            },
        )
    ]
