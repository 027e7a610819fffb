"""Reports: a page of numbers for each region, made in parallel. One file, under WSGI or ASGI.

    durably dev examples.django_reports.app:application        (WSGI)
    durably dev examples.django_reports.app:asgi_application   (ASGI)

then ask for a report:

    curl -X POST localhost:8000/reports
"""

import functools
import json

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

import durably
import durably.django

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["localhost", "127.0.0.1"],
        DEBUG=True,
        MIDDLEWARE=["django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="an example has no secrets",
    )
    django.setup()

client = durably.Client(app_id="reports")
SALES = {"north": [12, 7, 9], "south": [4, 4, 8], "west": [10, 1, 1]}


@client.create_function(fn_id="build-report", trigger=durably.TriggerEvent(event="report/requested"))
def build_report(ctx: durably.ContextSync) -> dict[str, object]:
    regions = ctx.event.data["regions"]
    totals = ctx.group.parallel(
        tuple(functools.partial(ctx.step.run, f"sum-{region}", sum_region, region) for region in regions)
    )
    return ctx.step.invoke("format", function=format_report, data={"totals": dict(zip(regions, totals, strict=True))})


@client.create_function(fn_id="format-report", trigger=durably.TriggerEvent(event="report/format"))
async def format_report(ctx: durably.Context) -> dict[str, object]:
    totals = ctx.event.data["totals"]
    best = max(totals, key=totals.__getitem__)
    return {"best": best, "total": sum(totals.values())}


def sum_region(region: str) -> int:
    return sum(SALES[region])


@csrf_exempt
@require_POST
def request_report(request: HttpRequest) -> JsonResponse:
    regions = json.loads(request.body or b"{}").get("regions", list(SALES))
    [event_id] = client.send_sync(durably.Event(name="report/requested", data={"regions": regions}))
    return JsonResponse({"event": event_id}, status=202)


urlpatterns = [
    path("reports", request_report),
    durably.django.serve(client, [build_report, format_report]),
]

application = get_wsgi_application()
asgi_application = get_asgi_application()
