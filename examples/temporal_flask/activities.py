"""Activities: the effects of an order outside. Synchronous activities run in threads."""

from temporalio import activity


@activity.defn
def process_order(order_id: str) -> str:
    return f"Processed order {order_id}"
