"""Slots for calls: those of a worker, and those that processes lease.

Leased slots are those of concurrency limits without a key.

A queue that grants each call costs four actions a call. These slots are leased in blocks, so that the costs grow with
processes and not with calls.

- **Calls wait in Temporal.** Each function with such a limit has a task queue. A process asks the server for as many
  calls as it has slots, and for one more, which makes it lease slots. The others wait in the task queue, in the order
  in which they were scheduled: they cost no history, no actions and no memory.
- **A workflow for each app owns the slots** (``slots_workflow.py``; its decisions are in ``slot_pools.py``). An Update
  of a process states all slots that it keeps, and how many more it needs, for all functions of the app. The answer is
  what it holds from then on. A process without calls holds nothing and sends nothing.
- **A lease has two ends.** The process stops to use its slots ``USE_SECONDS`` after it sent the last request that was
  answered, by a clock of its own that goes on while the machine is suspended. The workflow counts them as free
  ``LEASE_SECONDS`` after the request arrived. Between the two the server gives up the calls of a process that was
  stopped, because their heartbeats are missing: their generations are stale, and checkpoints are refused, before the
  slots are free.
- **A call looks at the clock before its function starts and after it has ended**, and is cancelled at the end of the
  lease. Its run makes it again with a new generation, which uses no attempt.
- **Requests are numbered.** A request that arrives late changes nothing. A process lowers what it uses before it sends
  a request that returns slots, so the workflow never counts fewer slots than are used.
- **Shares.** A process that needs slots doubles what it has, and returns slots that it did not use between two
  renewals. If others wait, the answer to a renewal limits it to its share, which it applies as calls end. If the
  functions of a process want more slots than it may make calls (``max_calls``), it divides them among the functions
  (``function_slots.py``). A function whose slots other processes hold leaves its part to others after a while.
- **Waiting.** A few requests wait in the workflow: those of the processes that need slots most. Others get an answer at
  once, and are repeated after a pause.

Limits with a key, several limits, throttles, priorities and timeouts stay with the queue of calls (``flow/``): they
need an order of all calls, or must know when a run's first call begins.

In process, a process leases slots for the functions that it serves. Over HTTP, each process of ``durably start`` does
so for all functions of all apps.
"""
