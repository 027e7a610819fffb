"""The support agent in a browser: streamed answers, an approval, and a server that is killed in between."""

import subprocess
import sys
from pathlib import Path

import urllib3
from playwright.sync_api import Browser, expect

from ..dashboard.browser import BrowserThread
from ..ports import free_port
from ..waiting import eventually

ROOT = Path(__file__).parents[2]
PATIENCE = 30_000


class Server:
    """The example's server, which is killed and comes back at the same address."""

    def __init__(self, directory: Path) -> None:
        self._port, self._directory = free_port(), directory
        self.origin = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "examples.support_agent.app:app", "--port", str(self._port)]
        self._process = subprocess.Popen(
            [*command, "--log-level", "warning"],
            cwd=ROOT,
            env={"PATH": "", "DATABASE": str(self._directory / "support.db")},
        )
        eventually(self._answers, "the server answers", ignore=(urllib3.exceptions.HTTPError,))

    def _answers(self) -> bool:
        return urllib3.request("GET", f"{self.origin}/docs", retries=False).status == 200

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def test_a_conversation_survives_a_kill_while_a_refund_waits_for_approval(tmp_path: Path) -> None:
    server, browser = Server(tmp_path), BrowserThread()
    try:
        browser.run(lambda: converse(server, browser.browser))
    finally:
        server.kill()
        browser.close()


def converse(server: Server, browser: Browser) -> None:
    customer = browser.new_page()
    staff = browser.new_context(http_credentials={"username": "ann", "password": "staff"}).new_page()
    customer.goto(server.origin)
    customer.get_by_role("textbox").fill("I want a refund for order 42")
    customer.get_by_role("button", name="Send").click()
    expect(customer.get_by_text("refund waits for our staff")).to_be_visible(timeout=PATIENCE)

    server.kill()
    server.start()
    staff.goto(f"{server.origin}/staff")
    expect(staff.get_by_text('refund {"order":42,"euros":12}')).to_be_visible(timeout=PATIENCE)
    staff.get_by_role("button", name="Approve").click()
    expect(staff.get_by_text("Nothing to approve")).to_be_visible(timeout=PATIENCE)
    expect(customer.get_by_text("€12 for order 42 are on their way")).to_have_count(1, timeout=PATIENCE)

    customer.get_by_role("textbox").fill("Thank you")
    customer.get_by_role("button", name="Send").click()
    expect(customer.get_by_text("Which order is it about?")).to_be_visible(timeout=PATIENCE)
