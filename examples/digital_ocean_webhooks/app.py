"""Webhooks, delivered by a DigitalOcean Function: several tries, then a signal from a person decides.

    durably dev examples.digital_ocean_webhooks.app:main

then ask for a delivery, and decide:

    durably send webhook/requested --data '{"url": "https://example.com/hook"}'
    curl -X POST localhost:8288/v1/signals -d '{"signal": "retry https://example.com/hook", "data": true}'
"""

import datetime as dt

import durably
import durably.digital_ocean

client = durably.Client(app_id="webhooks")
broken = {"https://example.com/hook"}


@client.create_function(fn_id="deliver", trigger=durably.TriggerEvent(event="webhook/requested"), retries=0)
def deliver(ctx: durably.ContextSync) -> str:
    url = ctx.event.data["url"]
    try:
        return ctx.step.run("deliver", post, url)
    except durably.StepError as error:
        ctx.logger.warning("%s: %s", error.name, error.message)
    answer = ctx.step.wait_for_signal("decision", signal=f"retry {url}", timeout=dt.timedelta(days=1))
    if answer is None or not answer.data:
        return "given up"
    broken.discard(url)
    return ctx.step.run("deliver", post, url)


def post(url: str) -> str:
    if url in broken:
        raise ConnectionError(f"{url} does not answer")
    return f"delivered to {url}"


main = durably.digital_ocean.serve(client, [deliver])
