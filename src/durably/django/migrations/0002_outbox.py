"""The tables of events and of results of steps."""

from django.db import migrations, models


class Migration(migrations.Migration):  # type: ignore[misc]
    dependencies = [("durably", "0001_initial")]
    operations = [
        migrations.CreateModel(
            name="OutboxEvent",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("app", models.CharField(max_length=255)),
                ("event", models.TextField()),
                ("error", models.TextField(blank=True, null=True)),
            ],
            options={"db_table": "durably_outbox", "default_permissions": ("view", "change", "delete")},
        ),
        migrations.CreateModel(
            name="TransactionResult",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("run_id", models.CharField(max_length=255)),
                ("step_id", models.CharField(max_length=64)),
                ("result", models.TextField(null=True)),
                ("created", models.BigIntegerField(db_index=True)),
            ],
            options={
                "db_table": "durably_transactions",
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(fields=("run_id", "step_id"), name="durably_transactions_step")
                ],
            },
        ),
    ]
