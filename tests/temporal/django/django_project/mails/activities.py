"""Activities of an app without workflows, on a task queue of its own."""

import os

from temporalio import activity

TASK_QUEUE = os.environ["TEST_TASK_QUEUE"] + "-mails"


@activity.defn
def send_mail(to: str) -> str:
    return f"mail to {to}"
