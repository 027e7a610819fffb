"""Times of the engine, which are milliseconds since the epoch, for people: as datetimes in UTC."""

import datetime as dt


def to_datetime(milliseconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)


def to_milliseconds(moment: dt.datetime) -> int:
    return round(moment.timestamp() * 1000)
