"""Slots for calls: the slots of a worker, and slots that processes lease.

Concurrency limits without a key have leased slots. ``docs/explanation/engine-on-temporal.md`` has the design.
Other limits use the queue of calls (``flow/limit_queue.py``).

- ``slots_workflow.py``, ``slot_pools.py``: the workflow that leases the slots of an app, and its decisions.
- ``slot_leases.py``, ``function_slots.py``: the slots of a process, and their division among its functions.
- ``leased_functions.py``, ``leased_workers.py``: the functions with leased slots, and the workers for their calls.
- ``call_slots.py``: the slots of a worker.
"""
