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

KEYS = {"control": "\ue009", "enter": "\ue007", "escape": "\ue00c"}  # WebDriver's code points


def find_browser() -> tuple[str, str] | None:
    """Chromium and chromedriver, from CHROMIUM and CHROMEDRIVER or the path; None if either is missing."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    driver = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


class Page:
    """One window of the browser. ``clicks`` counts what a hand would have done with the mouse, a drag as one."""

    def __init__(self, session_url: str):
        self.url = session_url
        self.clicks = 0

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

    def find(self, xpath: str, seconds: float = 20) -> str:
        """The first element that an XPath finds and that is shown; waits for one.

        Raises:
            TimeoutError: there was none.
        """
        deadline = time.monotonic() + seconds
        while True:
            for element in self.find_all(xpath):
                with contextlib.suppress(RuntimeError):  # it may have gone in between
                    if request(f"{self.url}/element/{element}/displayed"):
                        return element
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {seconds} seconds nothing is shown in the page that is {xpath}")
            time.sleep(0.1)

    def find_all(self, xpath: str) -> list[str]:
        found = request(self.url + "/elements", {"using": "xpath", "value": xpath})
        return [element for entry in found for element in entry.values()]

    def click(self, xpath: str, seconds: float = 20) -> None:
        """Click an element as soon as it is shown and nothing lies over it."""
        deadline = time.monotonic() + seconds
        while True:
            element = self.find(xpath, max(deadline - time.monotonic(), 0))
            try:
                request(f"{self.url}/element/{element}/click", {})
                break
            except RuntimeError:  # moved, replaced, or covered by something that is about to go
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        self.clicks += 1

    def centre(self, xpath: str) -> tuple[float, float]:
        """Where the centre of an element is in the window, once it is shown."""
        box = request(f"{self.url}/element/{self.find(xpath)}/rect")
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def mouse(self, *points: tuple[float, float], times: int = 1) -> None:
        """Press at the first point, move over the others, release at the last; ``times`` over."""
        (x, y), *rest = [(round(x), round(y)) for x, y in points]
        move = {"type": "pointerMove", "duration": 100}
        steps = [{**move, "x": x, "y": y}]
        for _ in range(times):
            steps.append({"type": "pointerDown", "button": 0})
            steps += [{**move, "x": x, "y": y} for x, y in rest]
            steps.append({"type": "pointerUp", "button": 0})
        source = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": steps}
        request(self.url + "/actions", {"actions": [source]})
        self.clicks += times

    def type(self, text: str, *, held: str = "") -> None:
        """Press keys one after the other, with one of them held down; see KEYS for those without a letter."""
        steps = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        if held:
            steps = [{"type": "keyDown", "value": held}, *steps, {"type": "keyUp", "value": held}]
        request(self.url + "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": steps}]})

    def log(self) -> list[dict]:
        """What was written to the console since the last call: level, source and message of each."""
        return request(self.url + "/se/log", {"type": "browser"})

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
            wanted = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
                "timeouts": {"script": 120_000, "pageLoad": 120_000},
            }
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
