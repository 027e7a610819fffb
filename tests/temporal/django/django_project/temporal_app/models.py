from django.db import models


class Visit(models.Model):
    """Something that activities write down."""

    note = models.CharField(max_length=100)
