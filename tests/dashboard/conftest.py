"""A site and a browser for each test process, and a page for each test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest
from examples.showcase.events import send_events
from playwright.sync_api import ConsoleMessage, Error, Page, Request, expect

from .browser import BrowserThread, axe_source
from .site import Site

ROOT = Path(__file__).parents[2]
TIMEOUT_MILLISECONDS = 30_000

expect.set_options(timeout=TIMEOUT_MILLISECONDS)


class OpenPage(Protocol):
    def __call__(
        self,
        path: str,
        *,
        width: int = 1280,
        scheme: str = "light",
        javascript: bool = True,
        allowed: str | None = None,
    ) -> Page: ...


class Windows:
    """Windows of the browser, which tests use one after the other: a new one costs a second of CPU."""

    def __init__(self, browser: BrowserThread) -> None:
        self._browser = browser
        self._free: dict[bool, list[Page]] = {True: [], False: []}

    def take(self, *, javascript: bool) -> Page:
        """A page that no test uses now."""
        return self._free[javascript].pop() if self._free[javascript] else self._open(javascript)

    def _open(self, javascript: bool) -> Page:
        context = self._browser.browser.new_context(
            java_script_enabled=javascript, timezone_id="Asia/Tokyo", locale="en-GB"
        )
        context.set_default_timeout(TIMEOUT_MILLISECONDS)
        return context.new_page()

    def give_back(self, page: Page, *, javascript: bool) -> None:
        page.goto("about:blank")  # A live page has requests under way, whose answers would set its cookie again.
        page.context.clear_cookies()
        self._free[javascript].append(page)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that have a page in the browser's thread, which Playwright requires."""
    if "open_page" not in pyfuncitem.fixturenames:
        return None
    browser: BrowserThread = pyfuncitem.funcargs["browser"]
    names = pyfuncitem._fixtureinfo.argnames
    browser.run(lambda: pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session")
def browser() -> Iterator[BrowserThread]:
    browser = BrowserThread()
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def axe() -> str:
    return axe_source()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An engine with the showcase's runs. Some runs have not ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        site = Site(tmp_path_factory.mktemp("site") / "site.db", "examples.showcase.app:app")
        site.run(send_events(site.engine))
    yield site
    site.close()


@pytest.fixture(scope="session")
def empty_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An engine without apps."""
    site = Site(tmp_path_factory.mktemp("site") / "empty.db")
    yield site
    site.close()


@pytest.fixture(scope="session")
def windows(browser: BrowserThread) -> Windows:
    return Windows(browser)


@pytest.fixture
def open_page(browser: BrowserThread, windows: Windows, site: Site) -> Iterator[OpenPage]:
    """Opens a page that has no cookies.

    After the test nothing may have gone wrong in it: no message of an error in the console, and no request to another
    host. ``allowed`` is a part of messages that are expected.
    """
    done: list[Callable[[], None]] = []
    problems: list[str] = []

    def open_(
        path: str, *, width: int = 1280, scheme: str = "light", javascript: bool = True, allowed: str | None = None
    ) -> Page:
        page = windows.take(javascript=javascript)

        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and not (allowed and allowed in message.text):
                problems.append(f"{message.type} in the console of {page.url}: {message.text}")

        def on_error(error: Error) -> None:
            problems.append(f"an error of {page.url}: {error}")

        def on_request(request: Request) -> None:
            if urlsplit(request.url).hostname != "127.0.0.1":
                problems.append(f"a request to {request.url}")

        def close() -> None:
            page.remove_listener("console", on_console)
            page.remove_listener("pageerror", on_error)
            page.remove_listener("request", on_request)
            windows.give_back(page, javascript=javascript)

        done.append(close)
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme, reduced_motion="no-preference")  # type: ignore[arg-type]
        page.on("console", on_console)
        page.on("pageerror", on_error)
        page.on("request", on_request)
        page.goto(path if "://" in path else site.origin + path)
        return page

    yield open_
    browser.run(lambda: [close() for close in done])
    assert not problems, "\n".join(problems)


@pytest.fixture
def check_accessibility(axe: str) -> Callable[..., None]:
    """Fails if axe finds something serious on the page.

    ``*rules`` are those to check, by default all.
    """

    def check(page: Page, *rules: str) -> None:
        page.evaluate(axe)
        options = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
        result: Any = page.evaluate("options => axe.run(document, options)", options)
        serious = [
            f"{each['id']}: {each['help']}: " + "; ".join(node["html"][:200] for node in each["nodes"][:3])
            for each in result["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert not serious, f"{page.url}\n" + "\n".join(serious)

    return check
