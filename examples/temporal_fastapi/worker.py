"""The connection, and what workers run. Nothing connects or starts when this is imported.

durably temporal worker worker:temporal
"""

from activities import process_order, restock
from workflows import OrderWorkflow

from durably.temporal import Temporal

TASK_QUEUE = "order-queue"

temporal = Temporal(task_queue=TASK_QUEUE)
temporal.add_worker(workflows=[OrderWorkflow], activities=[process_order, restock])
