"""Old objects, which most garbage collections leave out while an engine runs in the process.

Python collects the objects of all generations when those that survived since the last time are a quarter of all. The
old ones are mostly modules, and an engine under load has thousands of objects under way, so the collector would take
10 to 22 % of the app's time, nearly all of it for objects that are never garbage. ``gc.freeze`` excludes them.

Nothing is excluded for good. ``gc.collect()`` visits all objects as ever, and from time to time the engine's thread
calls it. An app that has frozen its objects, or has turned the collector off, has decided itself.
"""

import asyncio
import contextlib
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

_COLLECTIONS = 16
"""Automatic collections without the old objects before one that visits them."""

_DELAY_SECONDS = 0.05
"""Seconds from a callback of a collection to another collection. Python ignores one during another."""

_FEW = 1_000
"""More frozen objects than Python 3.12 has when it starts, and fewer than an app has."""


def _has_generations() -> bool:
    """Whether a collection can visit all old objects.

    The first releases of Python 3.14 visit them in parts, and their threshold is 0.
    """
    return gc.get_threshold()[2] > 0


class OldObjects:
    """Excludes the old objects for the engines that run in this process."""

    def __init__(self) -> None:
        self._engines = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_settling = False
        self._visits_all = False
        self._collections = 0

    def exclude(self) -> None:
        """Call it on the engine's event loop when an engine starts."""
        self._engines += 1
        if self._engines == 1 and _has_generations() and gc.isenabled() and gc.get_freeze_count() < _FEW:
            self._loop = asyncio.get_running_loop()
            gc.callbacks.append(self._on_collection)
            gc.freeze()
            self._settle()

    def include(self) -> None:
        """Call it when an engine ends."""
        self._engines -= 1
        if not self._engines and self._loop is not None:
            self._loop = None
            gc.callbacks.remove(self._on_collection)
            gc.unfreeze()

    def _on_collection(self, phase: str, info: dict[str, Any]) -> None:
        """Called before and after each collection, in any thread."""
        if info["generation"] != 2 or self._is_settling or self._loop is None:
            return
        if phase == "start":
            is_automatic = gc.get_count()[2] > gc.get_threshold()[2]
            if is_automatic:
                self._collections += 1
            else:
                self._collections, self._visits_all = 0, True
                gc.unfreeze()
            return
        gc.freeze()
        follows: Callable[[], object] | None = None
        if self._visits_all:
            self._visits_all, follows = False, self._settle
        elif not self._collections % _COLLECTIONS:
            follows = gc.collect
        if follows is not None:
            with contextlib.suppress(RuntimeError):  # The loop is closed at the end of the process.
                self._loop.call_soon_threadsafe(partial(self._loop.call_later, _DELAY_SECONDS, follows))

    def _settle(self) -> None:
        """Collect the few objects that are not excluded.

        Python counts the objects of the last collection of all generations, and the next one waits until a quarter as
        many have survived.
        """
        self._is_settling = True
        try:
            gc.collect()
        finally:
            self._is_settling = False


old_objects = OldObjects()
