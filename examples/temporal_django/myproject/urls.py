"""The views, the gateway beside them, and the admin."""

from django.contrib import admin
from django.urls import include, path
from temporal_app.gateway import gateway

from durably.temporal.django import urls

admin.site.site_url = None  # There are endpoints, and no pages but the admin's.

urlpatterns = [
    path("", include("temporal_app.urls")),
    path("api/", urls(gateway)),
    path("admin/", admin.site.urls),
]
