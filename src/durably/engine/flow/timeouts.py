"""Timeouts: how long a run may wait to start, and how long it may take from there.

A run has started when its first call is made. A run that is over either time is cancelled.
"""

import msgspec

from durably.protocol import sync

from .reading import Deadline, OptionReader


class Timeouts(msgspec.Struct, frozen=True):
    start: Deadline | None = None
    finish: Deadline | None = None

    def start_by(self, admitted_at: int) -> int | None:
        return None if self.start is None else self.start.counted_from(admitted_at)

    def finish_by(self, started_at: int) -> int | None:
        return None if self.finish is None else self.finish.counted_from(started_at)


def read_timeouts(config: sync.Timeouts | None, reader: OptionReader) -> Timeouts:
    if config is None:
        return Timeouts()
    return Timeouts(reader.deadline("timeouts.start", config.start), reader.deadline("timeouts.finish", config.finish))
