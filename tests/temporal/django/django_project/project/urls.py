"""URLs of the tests' project."""

from django.contrib import admin
from django.urls import path
from temporal_app.views import sign_up

urlpatterns = [path("admin/", admin.site.urls), path("signup/", sign_up)]
