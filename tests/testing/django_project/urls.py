from django.http import HttpRequest, HttpResponse
from django.urls import path
from reports.functions import client, report, report_async

import durably
import durably.django


def ask(request: HttpRequest) -> HttpResponse:
    client.send_sync(durably.Event(name="report/asked", data={"title": request.POST["title"]}))
    return HttpResponse(status=202)


urlpatterns = [
    path("ask", ask),
    path("durably/", durably.django.dashboard(client, allow_anonymous=True)),
    durably.django.serve(client, [report, report_async]),
]
