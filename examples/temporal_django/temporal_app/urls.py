from django.urls import path

from . import views

urlpatterns = [
    path("signup/", views.sign_up, name="sign_up"),
    path("orders", views.create_order, name="create_order"),
    path("orders/<workflow_id>", views.get_order_status, name="get_order_status"),
    path("orders/<workflow_id>/cancel", views.cancel_order, name="cancel_order"),
]
