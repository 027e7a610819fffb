"""The shop's tables. The workflow of an order has its progress."""

from django.db import models


class Order(models.Model):
    class Status(models.TextChoices):
        PLACED = "placed"
        PROCESSED = "processed"
        CANCELLED = "cancelled"

    order_id = models.SlugField(max_length=40, unique=True)
    status = models.CharField(max_length=10, choices=Status, default=Status.PLACED)
    placed_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.workflow_id

    @property
    def workflow_id(self) -> str:
        return f"order-{self.order_id}"
