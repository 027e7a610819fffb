from django.db import models


class Visit(models.Model):
    """A record that activities write."""

    note = models.CharField(max_length=100)
