"""Drive headless Chromium through chromedriver's W3C WebDriver interface, with nothing but the standard library."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

SWITCHES = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
).split()


def find_browser() -> tuple[str, str] | None:
    """Chromium and chromedriver, from CHROMIUM and CHROMEDRIVER or the path; None if either is missing."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    driver = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


class Page:
    """One window of the browser."""

    def __init__(self, session_url: str):
        self.url = session_url

    def open(self, url: str) -> None:
        request(self.url + "/url", {"url": url})

    def run(self, script: str, *arguments):
        """Run the body of an async function, with its arguments in ``arguments``, and return what it resolves to.

        Raises:
            RuntimeError: the script threw; the message is the script's.
        """
        body = (
            "const args = [...arguments]; const done = args.pop();"
            f"(async function () {{ {script} }})(...args).then("
            "value => done({value: JSON.stringify(value ?? null)}), "
            "error => done({error: String(error.stack || error)}));"
        )
        answer = request(self.url + "/execute/async", {"script": body, "args": list(arguments)})
        if "error" in answer:
            raise RuntimeError(f"the page threw: {answer['error']}")
        return json.loads(answer["value"])

    def wait_for(self, expression: str, seconds: float) -> None:
        """Poll until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"return Boolean({expression});"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {seconds} seconds still not true in the page: {expression}")
            time.sleep(0.3)

    def screenshot(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(request(self.url + "/screenshot"))


def request(url: str, value: dict | None = None, method: str | None = None):
    """Ask chromedriver; its errors become a RuntimeError with their message."""
    data = None if value is None else json.dumps(value).encode()
    headers = {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=180) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"chromedriver: {json.load(error)['value']['message']}") from error


@contextlib.contextmanager
def browse(browser: tuple[str, str], port: int, width: int = 1600, height: int = 900) -> Iterator[Page]:
    """A page of a browser with a profile of its own; both processes are stopped afterwards."""
    chromium, driver = browser
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        log = Path(profile) / "chromedriver.log"
        process = subprocess.Popen([driver, f"--port={port}", f"--log-path={log}"], stdout=subprocess.DEVNULL)
        try:
            root = f"http://127.0.0.1:{port}"
            wait_until_ready(root, process)
            arguments = [*SWITCHES, f"--window-size={width},{height}", f"--user-data-dir={profile}/profile"]
            options = {"binary": chromium, "args": arguments}
            wanted = {"goog:chromeOptions": options, "timeouts": {"script": 120_000, "pageLoad": 120_000}}
            answer = request(root + "/session", {"capabilities": {"alwaysMatch": wanted}})
            session = f"{root}/session/{answer['sessionId']}"
            try:
                yield Page(session)
            finally:
                request(session, method="DELETE")  # ends Chromium
        finally:
            process.terminate()
            process.wait(timeout=20)


def wait_until_ready(root: str, process: subprocess.Popen, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if request(root + "/status")["ready"]:
                return
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("chromedriver did not start") from None
        time.sleep(0.1)
