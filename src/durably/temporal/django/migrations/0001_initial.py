"""No table: the permissions, which ``migrate`` makes."""

from django.db import migrations, models


class Migration(migrations.Migration):  # type: ignore[misc]
    initial = True
    operations = [
        migrations.CreateModel(
            name="Workflow",
            fields=[("workflow_id", models.CharField(max_length=1000, primary_key=True, serialize=False))],
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
