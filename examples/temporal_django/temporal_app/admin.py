"""Orders in the admin, each with a link to its workflow."""

from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.urls import reverse
from django.utils.html import format_html

from .models import Order


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ("order_id", "status", "placed_at", "workflow")
    list_filter = ("status", "placed_at")
    search_fields = ("order_id",)
    readonly_fields = list_display

    # An order and its workflow belong together: both begin in ``views``, and go on in the workflow.
    def has_add_permission(self, request: Any) -> bool:
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        return False

    @admin.display
    def workflow(self, order: Order) -> str:
        url = reverse("admin:durably_temporal_workflow_change", args=[quote(order.workflow_id)])
        return format_html('<a href="{}">{}</a>', url, order.workflow_id)
