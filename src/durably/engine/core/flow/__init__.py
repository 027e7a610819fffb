"""Flow control: when, whether, and in which order runs start and calls are made.

One option of a function's configuration a module, all of them pure: events, stored states and the time of day (in
milliseconds since the epoch) come in as values, decisions and new states go out as values. ``config`` reads an app's
configuration into a ``Flow`` and refuses what makes no sense. ``admission`` decides what becomes of an event. ``queue``
hands out the calls that wait for room. Nothing here knows where states and queues are stored.
"""
