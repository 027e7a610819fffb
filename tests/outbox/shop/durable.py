"""The functions of the Django project in the storms."""

import os

from django.db import transaction

import durably
import durably.django

from .models import Order, Shipment

engine = durably.Embedded(os.environ["SHOP_ENGINE"], max_calls=16)  # Each kill costs the calls an attempt.
client = durably.Client(app_id="shop", engine=engine, is_production=False)


@durably.django.transaction
def ship(ref: str) -> int:
    number: int = Shipment.objects.create(ref=ref).pk
    durably.django.send(durably.Event(name="shop/shipped", data={"ref": ref}))
    return number


@client.create_function(fn_id="fulfil", retries=20, trigger=durably.TriggerEvent(event="shop/placed"))
def fulfil(ctx: durably.ContextSync) -> int:
    return ctx.step.run("ship", ship, str(ctx.event.data["ref"]))


@client.create_function(fn_id="thank", retries=20, trigger=durably.TriggerEvent(event="shop/shipped"))
async def thank(ctx: durably.Context) -> object:
    return ctx.event.data["ref"]


def place(ref: str, *, fails: bool) -> None:
    with transaction.atomic():
        Order.objects.create(ref=ref)
        durably.django.send(durably.Event(name="shop/placed", data={"ref": ref}))
        if fails:
            transaction.set_rollback(True)


def read() -> tuple[list[str], list[str]]:
    """The references of orders and of shipments."""
    return (
        list(Order.objects.values_list("ref", flat=True)),
        list(Shipment.objects.values_list("ref", flat=True)),
    )
