"""Cost of the page of a run of a thousand steps for the engine, and the time until a browser has drawn it."""

import json
import statistics
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser
from tests.dashboard.browser import BrowserThread

from .children import Child
from .tables import describe_machine, judge, table

STEPS = 1_000
_GROUPS = 10
_MOST_ANSWER_SECONDS = 0.15
_MOST_DRAWN_SECONDS = 1.0
_DRAWN = """() => new Promise(done => {
    const twoFrames = () => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())));
    document.readyState === "complete" ? twoFrames() : addEventListener("load", twoFrames);
})"""
"""Milliseconds from the start of the navigation to the second frame after the page has loaded."""


@dataclass
class Costs:
    """Seconds of each answer, CPU seconds of one, bytes, and seconds until each page was drawn."""

    seconds: list[float]
    cpu_seconds: float
    size: int
    drawn: list[float]


def measure(directory: Path, *, steps: int, repetitions: int) -> Costs:
    with Child("benchmarks.contenders.durably_fan_out", directory / "run", "in-process") as child:
        child.ask(groups=_GROUPS, width=steps // _GROUPS)
    with Child("benchmarks.engine_process", directory / "run") as engine:
        origin = engine.ready["origin"]
        [run] = json.loads(_get(f"{origin}/v1/search/runs?limit=1"))["data"]["runs"]
        url = f"{origin}/runs/{run['run_id']}"
        page = _get(url)  # the templates are compiled
        if page.count(b"w-row") < steps:
            raise RuntimeError(f"the page at {url} does not show {steps} steps")
        seconds, cpu_before = [], engine.cpu_seconds()
        for _ in range(repetitions):
            began = time.perf_counter()
            _get(url)
            seconds.append(time.perf_counter() - began)
        cpu_seconds = (engine.cpu_seconds() - cpu_before) / repetitions
        return Costs(seconds, cpu_seconds, len(page), _draw(url, repetitions))


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        content: bytes = response.read()
        return content


def _draw(url: str, repetitions: int) -> list[float]:
    thread = BrowserThread()
    try:
        return thread.run(lambda: [_draw_once(thread.browser, url) for _ in range(repetitions)])
    finally:
        thread.close()


def _draw_once(browser: Browser, url: str) -> float:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    try:
        page = context.new_page()
        page.goto(url, wait_until="commit")
        milliseconds: float = page.evaluate(_DRAWN)
        return milliseconds / 1000
    finally:
        context.close()


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    repetitions, steps = (1, 20) if is_quick else (15, STEPS)
    costs = measure(directory, steps=steps, repetitions=repetitions)
    answer, drawn = statistics.median(costs.seconds), statistics.median(costs.drawn)
    return "\n".join(
        [
            "## The page of a run of a thousand steps\n",
            f"{describe_machine()} A run of {steps:,} steps in {_GROUPS} groups; medians of {repetitions} requests, "
            f"one after another. The page has {costs.size / 1e3:,.0f} kB. A browser's time is from the start of the "
            "navigation to the second frame after the page has loaded, in a new context of headless Chromium.\n",
            table(
                ["the engine's answer", "its CPU time", "drawn by a browser"],
                [[f"{each * 1e3:,.0f} ms" for each in (answer, costs.cpu_seconds, drawn)]],
            ),
            judge("the answer", answer, at_most=_MOST_ANSWER_SECONDS, unit="s"),
            judge("drawn", drawn, at_most=_MOST_DRAWN_SECONDS, unit="s"),
            "",
        ]
    )
