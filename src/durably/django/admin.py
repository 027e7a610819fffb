"""The admin: events in the outbox, and the link to the dashboard."""

from typing import Any

from django.contrib import admin
from django.http import HttpResponseRedirect
from django.urls import NoReverseMatch, path, reverse

from .models import Dashboard, OutboxEvent


@admin.register(Dashboard)
class DashboardAdmin(admin.ModelAdmin):  # type: ignore[misc]
    """Redirects to the dashboard.

    It is hidden without the permission, and if the project's URLs have no dashboard.
    """

    def has_module_permission(self, request: Any) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: Any, obj: Any = None) -> bool:
        return _url() is not None and bool(request.user.has_perm("durably.view_dashboard"))

    def has_add_permission(self, request: Any) -> bool:
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[Any]:
        redirect = self.admin_site.admin_view(lambda request: HttpResponseRedirect(_url() or ".."))
        return [path("", redirect, name="durably_dashboard_changelist")]


def _url() -> str | None:
    """The dashboard's URL.

    ``None`` if the project's URLs have none, or have it under another namespace.
    """
    try:
        return str(reverse("durably:dashboard", args=[""]))
    except NoReverseMatch:
        return None


@admin.register(OutboxEvent)
class OutboxEventAdmin(admin.ModelAdmin):  # type: ignore[misc]
    """Events that wait, and refused ones with their reasons. Only refused ones can be corrected and sent again."""

    list_display = ("id", "app", "event", "error")
    list_filter = (("error", admin.EmptyFieldListFilter),)
    ordering = ("id",)
    readonly_fields = ("app", "error")
    actions = ("send_again",)

    def has_add_permission(self, request: Any) -> bool:
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        return (obj is None or obj.error is not None) and bool(super().has_change_permission(request, obj))

    def save_model(self, request: Any, obj: Any, form: Any, change: bool) -> None:
        obj.error = None
        super().save_model(request, obj, form, change)

    @admin.action(description="Send again", permissions=["change"])  # type: ignore[untyped-decorator]
    def send_again(self, request: Any, queryset: Any) -> None:
        queryset.update(error=None)
