"""Activities: the effects of an order outside. Activities that fail are retried."""

from temporalio import activity


@activity.defn
async def process_order(order_id: str) -> str:
    if activity.info().attempt == 1:
        raise ConnectionError("the warehouse hung up")
    return f"Processed order {order_id}"


@activity.defn
async def restock(order_id: str) -> None:
    activity.logger.info("what order %s had reserved is back on the shelf", order_id)
