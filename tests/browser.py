"""A headless Chromium for tests that look at a page. Tests get it from the fixture `browser` in conftest.py.

Chromium and ChromeDriver must be on the PATH already (`make test` installs them where it can); this file downloads
nothing. The browser reaches only this machine, so requests to other servers fail, and `requests` lists them.
"""

from __future__ import annotations

import json
import os
import shutil
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

# .ci/run sets this variable. With it, tests fail instead of being skipped where the browser is missing.
REQUIRED = "PDIFF_REQUIRE_BROWSER"
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # the sandbox does not start for root or in containers, and all pages are our own
    "--disable-dev-shm-usage",  # /dev/shm is small in containers
    "--disable-background-networking",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


class Browser:
    """Shows one page at a time. `driver` is selenium's driver, for clicking and typing."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self._width = 0
        self._requests: list[str] = []
        self._messages: list[str] = []

    def open(self, address: str, *, width: int = 1200, dark: bool = False, media: str = "") -> None:
        """Load a page (http or file) and wait for it.

        width: of the window in CSS pixels; below 600 the browser acts as a phone. media: "print" shows the page as on
        paper.
        """
        self._command(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self._command("Emulation.setScrollbarsHidden", hidden=True)  # on some systems they take a part of `width`
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self._width = width
        self._read_logs()
        self._requests.clear()
        self._messages.clear()
        self.driver.get(address)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.driver.execute_script(f"return {expression}")

    def requests(self) -> list[str]:
        """Every address requested since `open`, the page's own first. Data inside the page is not a request."""
        self._read_logs()
        return list(self._requests)

    def messages(self) -> list[str]:
        """Warnings and errors on the console since `open`, from scripts and from blocked or failed requests."""
        self._read_logs()
        return list(self._messages)

    def overflow(self) -> int:
        """CSS pixels by which the page is wider than the window that `open` set; it should be 0."""
        return self.evaluate("document.documentElement.scrollWidth") - self._width

    def screenshot(self, path: Path) -> None:
        """Writes a picture of the whole page, from top to bottom, as PNG."""
        shot = self._command("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(b64decode(shot["data"]))

    def pdf(self) -> bytes:
        """The page as a PDF, as it would be printed on paper."""
        return b64decode(self._command("Page.printToPDF", preferCSSPageSize=True)["data"])

    def _command(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def _read_logs(self) -> None:
        """Keeps new lines of the browser's logs, because selenium returns each line only once."""
        for line in self.driver.get_log("performance"):
            event = json.loads(line["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                address = event["params"]["request"]["url"]
            elif event["method"] == "Network.webSocketCreated":
                address = event["params"]["url"]
            else:
                continue
            if not address.startswith(("data:", "blob:")):
                self._requests.append(address)
        self._messages += [
            f"{line['level']}: {line['message']}"
            for line in self.driver.get_log("browser")
            if line["level"] in ("WARNING", "SEVERE")
        ]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A running browser. Without Chromium the test is skipped, or it fails if `PDIFF_REQUIRE_BROWSER` is set."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in programs.items() if path is None]:
        reason = (
            f"{' and '.join(missing)} not found on the PATH; `make test` as root installs what is missing on "
            "Debian, elsewhere install Chromium and its ChromeDriver by hand"
        )
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set, but {reason}", pytrace=False)
        pytest.skip(reason)
    options = ChromeOptions()
    options.binary_location = str(programs["chromium"])
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for flag in _FLAGS:
        options.add_argument(flag)
    # Chromium leaves files in HOME and TMPDIR, and may still write there after its driver has ended.
    with TemporaryDirectory(prefix="pdiff-hub-browser-", ignore_cleanup_errors=True) as home:
        environment = {**os.environ, "HOME": home, "TMPDIR": home}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("no_proxy", "localhost,127.0.0.1")  # selenium speaks with the driver over HTTP
            # With a path given, selenium looks for no other driver.
            driver = Chrome(options, Service(str(programs["chromedriver"]), env=environment))
        try:
            driver.set_page_load_timeout(60)
            yield Browser(driver)
        finally:
            driver.quit()
