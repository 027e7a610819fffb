"""Events that start runs of every kind in the back office."""

import asyncio

import msgspec

from durably import Event
from durably.engine.api.interface import Engine

APP = "back-office"
PAUSED = f"{APP}-send-newsletter"


def parcel(order: str, *grams: int) -> Event:
    items = [{"sku": f"{order}-{number}", "grams": each} for number, each in enumerate(grams, 1)]
    return Event(name="parcel/requested", data={"order": order, "items": items})


def invoice(number: str, amount: float, currency: str) -> Event:
    return Event(name="invoice/received", data={"number": number, "amount": amount, "currency": currency})


def refund(order: str, amount: int) -> Event:
    return Event(name="refund/requested", data={"order": order, "amount": amount, "reason": "arrived broken"})


EVENTS = [
    Event(name="catalogue/published", data={"supplier": "Nordlys", "pages": 12}),
    parcel("A-1041", 120, 340, 80),
    parcel("A-1042", 700, 420, 260, 510),
    invoice("INV-77", 1240.5, "USD"),
    invoice("INV-78", 89.9, "EUR"),
    invoice("INV-79", 310.0, "CHF"),
    Event(name="invoice/settled", data={"number": "INV-77"}),
    Event(name="parcel/delivered", data={"customer": "ada@example.com", "country": "SE"}),
    Event(name="parcel/delivered", data={"customer": "grace@example.com", "country": "NO"}),
    refund("A-1007", 120),
    Event(name="refund/requestd", data={"order": "A-1009", "amount": 40}),  # misspelled: it starts nothing
    Event(name="report/requested", data={"week": 47}),
    Event(name="newsletter/ready", data={"issue": 31}),
    *(Event(name="photo/uploaded", data={"photo": f"IMG_{1200 + n}", "seconds": 4}) for n in range(8)),
    Event(name="catalogue/published", data={"supplier": "Söderberg & Söner", "pages": 200}),
]


async def send_events(engine: Engine) -> None:
    """Pause a function, send the events, and cancel a run by an event."""
    await engine.pause_function(PAUSED)
    [withdrawn] = await send(engine, refund("A-1006", 60))
    await send(engine, *EVENTS)
    [run] = await engine.event_runs(withdrawn)
    while not any(step.id == "answer" for step in await engine.run_steps(run.id)):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await send(engine, Event(name="refund/withdrawn", data={"order": "A-1006"}))


async def send(engine: Engine, *events: Event) -> list[str]:
    return (await engine.receive_events(msgspec.json.encode(events))).ids
