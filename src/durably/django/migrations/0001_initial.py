"""Creates no table, only the permissions."""

from django.db import migrations, models


class Migration(migrations.Migration):  # type: ignore[misc]
    initial = True
    operations = [
        migrations.CreateModel(
            name="Dashboard",
            fields=[("id", models.BigAutoField(primary_key=True, serialize=False))],
            options={"managed": False, "default_permissions": ("view", "change"), "verbose_name_plural": "dashboard"},
        )
    ]
