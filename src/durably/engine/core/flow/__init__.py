"""Flow control: whether and when runs start, and in which order calls are made.

All modules are pure: they take events, stored states and the time (milliseconds since the epoch) as values, and return
decisions and new states. ``config`` compiles the options of a function into a ``Flow``. ``admission`` decides about an
event. ``queue`` returns the waiting calls that may be made. The engines store states and queues.
"""
