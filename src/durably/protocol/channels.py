"""Messages of channels on the wire between apps and engines.

A channel is a name, by default a run's id. The topics of a channel that begin with ``$`` are the engine's.
"""

import datetime as dt
import re
from enum import StrEnum

import msgspec

RUN_TOPIC, STEP_TOPIC, PROGRESS_TOPIC = "$run", "$step", "$progress"
GAP_TOPIC = "$gap"
"""Messages may be missing here. The data is ``{"reason": text}``."""
MAX_MESSAGE_BYTES = 512 * 1024
"""The largest data of a message."""
MAX_CHANNEL_NAME_LENGTH = 512
"""Of a channel or a topic, in characters."""
_RUN_ID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


def is_run_id(name: str) -> bool:
    """Whether a channel's name has the form of a run's id, a ULID."""
    return _RUN_ID.fullmatch(name) is not None


class MessageKind(StrEnum):
    DATA = "data"
    STREAM_START = "datastream-start"
    """A text follows in chunks. The data of this message and of the last one is the stream's id."""
    CHUNK = "chunk"
    STREAM_END = "datastream-end"


class NewMessage(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A message to publish. ``data`` is JSON."""

    channel: str
    topic: str
    data: msgspec.Raw
    kind: MessageKind = MessageKind.DATA
    stream_id: str | None = None


class Message(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A published message.

    The ids of an engine increase over all of its channels. A state that was sent again has the id of the position
    before it. ``data`` is JSON.
    """

    id: int
    channel: str
    topic: str
    data: msgspec.Raw
    created_at: dt.datetime
    kind: MessageKind = MessageKind.DATA
    stream_id: str | None = None


class MessageBatch(msgspec.Struct, frozen=True):
    """The messages of some channels up to ``position``, in order. Read them from there the next time.

    ``ended`` are the channels of runs that have ended, and have no further messages. If it ``has_more``, the batch has
    reached its largest size.
    """

    messages: list[Message]
    position: int
    ended: list[str] = []
    has_more: bool = False
