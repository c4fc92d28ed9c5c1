"""ComfyUI's front end in headless Chromium, used as a person uses it: templates, library, widgets, Run, errors, help.

The browser is the system's own, driven by Playwright. Where the front ends differ (1.27 of ComfyUI 0.3.64, 1.35 of
0.8.0, 1.49 of 0.33.0, 1.58), one selector of WHERE finds all; the comments there say which part belongs to which.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence

from playwright.sync_api import Browser, Error, Locator, sync_playwright

PACK = "cogvideox-fun"  # the folder in custom_nodes, which is the name of the templates' category
APP = "window.comfyAPI?.app?.app"
READY = f"{APP}?.graph && window.LiteGraph?.registered_node_types?.SaveVideo && {APP}.canvas?.canvas?.offsetParent"

IN_DIALOG = "//*[@role='dialog' or contains(@class, 'p-dialog')]"
WHERE = {
    "templates": "//button[contains(@class, 'templates-tab-button')]",
    # 1.27 an option of a list box, 1.49 a span in a button
    "category": IN_DIALOG + "//*[self::span or self::li][normalize-space() = '{}']",
    "card": "//*[@data-testid = 'template-workflow-{}']",
    "last_card": "(//*[starts-with(@data-testid, 'template-workflow-')])[last()]",
    # 1.27 the first half of a split button, 1.49 a button
    "run": "//*[@data-testid = 'queue-button'][self::button] | //*[@data-testid = 'queue-button']//button[1]",
    # 1.58 has a test id in place of the class
    "library": "//button[contains(@class, 'node-library-tab-button') or @data-testid = 'node-library-tab-button']",
    # 1.49 has tabs and opens the one with essential nodes; 1.27 has neither
    "library_tab": "//*[@role = 'tab'][normalize-space() = 'All' or normalize-space() = 'All nodes']",
    "library_search": "//*[contains(@class, 'side-bar-panel')]//input[@type = 'text' or @role = 'combobox']",
    "library_leaf": "//*[contains(@class, 'tree-leaf')]//span[normalize-space() = '{0}']"  # 1.27
    " | //*[@draggable = 'true'][normalize-space() = '{0}']",  # 1.49
    "prompt": "//*[contains(@class, 'graphdialog')]//input",
    "menu_entry": "//*[contains(@class, 'litecontextmenu')]//*[contains(@class, 'litemenu-entry')][. = '{}']",
    "help_button": "//*[@data-testid = 'info-button']",
    "help": "//*[contains(@class, 'node-help-content')]//*[contains(@class, 'markdown-content')]",
    # 1.27 shows errors in a dialog; 1.49 in a note over the canvas that leads to a panel with more behind an icon
    "error": IN_DIALOG + " | //*[@data-testid = 'error-overlay']",
    "error_dismiss": "//*[@data-testid = 'error-overlay-dismiss']",
    "app": "//button[@aria-label = 'Enter app mode']",
    "graph": "//button[@aria-label = 'Enter node graph']",
    "app_run": "//button[normalize-space() = 'Run']",
    "error_panel": "//*[@data-testid = 'error-overlay-see-errors']",
    "error_more": "//button[@aria-expanded = 'false'][.//i[contains(@class, 'lucide--info')]]",
}

# Dialogs, notices in a corner, and 1.49's note over the canvas, as a CSS selector.
MESSAGES = (
    "[role=dialog], [role=alertdialog], .p-dialog, .p-toast-message, :has(> [data-testid=toast-close]), "
    "[data-testid=error-overlay]"
)

# Errors that ComfyUI itself writes to the console, and what causes them.
COMFYUI_NOISE = {
    r"/user\.css|/favicon\.ico": "files that a user or a theme may add, and that are asked for on every load",
    r"/api/userdata": "settings, workflows and blueprints that a new user has not saved yet",
    r"^https://": "ComfyUI's own services and model sizes, which a test does not reach",
    r"accessed before initialization": "1.49 asks its own graph too early",
    r"/docs/\w+/en\.md": "help in a folder per language, asked for first; ours is <id>.md",
    r"\w\.\$t is not a function": "1.27 and 1.35 draw the picture of a node that is dragged without its translations",
    r"Error fetching file size": "1.27 asks the hub for the size of a missing file, which a test does not reach",
    r"event listeners for graph that was never set up": "1.27's small map, when a subgraph is entered and left",
    r"Cannot read properties of undefined \(reading 'id'\)": "1.27, on the first load of a new user",
}

CLOSE_NOTICES = """
document.querySelectorAll('.p-toast-close-button, [data-testid=toast-close]').forEach(button => button.click());
"""

# Without a graphics card Chromium draws every frame of an animation on the CPU, which costs more than all else.
NO_ANIMATIONS = """
addEventListener('DOMContentLoaded', () => {
    const style = document.createElement('style');
    style.textContent = '*, ::before, ::after {transition: none !important; animation: none !important}';
    document.head.append(style);
});
"""

WATCH = """
const api = window.comfyAPI.api.api;
if (!window.watched) {
    const on = (name, note) => api.addEventListener(name, event => note(event.detail));
    on('progress', detail => window.watched.progress.push([detail.value, detail.max]));
    on('cogvideox-fun.said', detail => window.watched.texts.push(detail.text));
    on('b_preview', blob => window.watched.previews.push(blob.type));
    on('execution_success', () => window.watched.end = 'success');
    on('execution_error', detail => window.watched.end = detail.exception_message);
}
window.watched = {progress: [], texts: [], previews: [], end: null};
"""

STILL = """
const ds = app.canvas.ds, view = () => [ds.scale, ...ds.offset].join();
for (let before = view(), same = 0; same < 6; before = view()) {
    await new Promise(done => setTimeout(done, 100));
    same = view() == before ? same + 1 : 0;
}
"""

GEOMETRY = """
const [id, part, name, moves] = arguments;
const canvas = app.canvas, node = app.canvas.graph.getNodeById(id);
const view = () => [canvas.ds.scale, ...canvas.ds.offset].join();
for (let tries = 0; moves && tries < 20; tries++) {  // the front end may still be moving its view
    canvas.ds.scale = 1;
    canvas.centerOnNode(node);
    canvas.draw(true, true);
    const before = view();
    await new Promise(done => setTimeout(done, 150));
    if (view() == before) break;
}
let at;
if (part == 'title') at = [node.pos[0] + node.size[0] / 2, node.pos[1] - 12];
if (part == 'input') at = node.getInputPos(node.inputs.findIndex(slot => slot.name == name));
if (part == 'output') at = node.getOutputPos(node.outputs.findIndex(slot => slot.name == name));
if (part == 'widget') {
    const widget = node.widgets.find(widget => widget.name == name), element = widget.element ?? widget.inputEl;
    if (element) {
        const box = element.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    }
    at = [node.pos[0] + node.size[0] / 2, node.pos[1] + (widget.last_y ?? widget.y) + 10];
}
const [x, y] = canvas.ds.convertOffsetToCanvas(at), box = canvas.canvas.getBoundingClientRect();
return [box.x + x, box.y + y];
"""


def find_browser() -> str | None:
    """Chromium, from CHROMIUM or the path; None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextlib.contextmanager
def start_browser() -> Iterator[Browser]:
    """Headless Chromium that reaches nothing but this computer. Only one may run at a time."""
    switches = ["--no-sandbox", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=switches)
        with contextlib.closing(browser):
            yield browser


class FrontEnd:
    """The front end of one ComfyUI in a window of a new profile.

    ``clicks`` counts what a person would have done with the mouse, a drag as one.
    """

    def __init__(self, browser: Browser, url: str, width: int = 1600, height: int = 900):
        self.url = url
        self.clicks = 0
        self.errors: list[str] = []
        self.page = browser.new_context(viewport={"width": width, "height": height}).new_page()
        self.page.set_default_timeout(60_000)
        self.page.add_init_script(NO_ANIMATIONS)
        self.page.on("console", self.hear)
        self.page.on("pageerror", lambda error: self.errors.append(error.stack or error.message))

    def hear(self, message) -> None:
        if message.type == "error":
            self.errors.append(f"{message.location['url']} {message.text}")

    def open(self) -> None:
        """Load the page; dialogs that open by themselves stay open."""
        self.page.goto(self.url, timeout=120_000)
        self.wait_for(READY, seconds=90)
        self.app(WATCH)

    def close(self) -> None:
        self.page.context.close()

    # what Playwright is asked for

    def app(self, script: str, *arguments):
        """Run the body of an async function that sees the front end's ``app`` and ``arguments``."""
        body = f"async args => (async function () {{ const app = {APP}; {script} }}).apply(null, args)"
        return self.page.evaluate(body, arguments)

    def wait_for(self, expression: str, seconds: float) -> None:
        """Wait until a JavaScript expression is true."""
        self.page.wait_for_function(f"Boolean({expression})", timeout=seconds * 1000)

    def wait_until(self, ask: Callable, seconds: float, problem: str):
        """Ask until the answer is not empty; the answer."""
        deadline = time.monotonic() + seconds
        while not (answer := ask()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {seconds} seconds {problem}: {self.messages()}")
            self.page.wait_for_timeout(200)
        return answer

    def find(self, name: str, value: str = "") -> Locator:
        """The first element of WHERE that is shown."""
        return self.page.locator("xpath=" + WHERE[name].format(value)).filter(visible=True).first

    def is_shown(self, name: str, value: str = "") -> bool:
        return self.find(name, value).count() > 0

    def click(self, name: str, value: str = "", seconds: float = 60) -> None:
        """Click an element as soon as it is shown and nothing lies over it."""
        self.find(name, value).click(timeout=seconds * 1000)
        self.clicks += 1

    def mouse(self, *points: Sequence[float], times: int = 1) -> None:
        """Press at the first point, move over the others, release at the last; ``times`` over."""
        self.page.mouse.move(*points[0], steps=5)
        for _ in range(times):
            self.page.mouse.down()
            for point in points[1:]:
                self.page.mouse.move(*point, steps=5)
            self.page.mouse.up()
        self.clicks += times

    def replace_text(self, text: str) -> None:
        """Type over what the focused field holds."""
        self.page.keyboard.press("Control+A")
        self.page.keyboard.press("Backspace")
        self.page.keyboard.type(text)

    # what is on the screen

    def nodes(self) -> dict[int, dict]:
        """Of every node of the graph, by its id: type, title, widgets and whether it is red for missing."""
        found = self.app(
            "return app.canvas.graph.nodes.map(node => ({id: Number(node.id), type: node.type, "
            "title: node.getTitle(), missing: Boolean(node.has_errors), "
            "widgets: Object.fromEntries((node.widgets ?? []).map(widget => [widget.name, widget.value ?? null]))}))"
        )
        return {node["id"]: node for node in found}

    def node(self, name: str) -> int:
        """The id of the only node of a type or title."""
        (found,) = (key for key, node in self.nodes().items() if name in (node["type"], node["title"]))
        return found

    def messages(self) -> list[str]:
        """The text of every dialog, notice and error that is shown now, without repeated blanks."""
        found = self.page.locator(MESSAGES).filter(visible=True).all_inner_texts()
        return [re.sub(r"\s+", " ", text).strip() for text in found]

    def text(self) -> str:
        """Everything that can be read in the page, without repeated blanks."""
        return re.sub(r"\s+", " ", self.page.inner_text("body"))

    def console_errors(self) -> list[str]:
        """Errors written to the console since the last call, without those of COMFYUI_NOISE."""
        self.app("return 0")  # Playwright hands over what it has heard
        errors, self.errors = self.errors, []
        return [error for error in errors if not any(re.search(pattern, error) for pattern in COMFYUI_NOISE)]

    # what a person does

    def close_dialogs(self) -> None:
        """Close every dialog and notice."""

        def close() -> bool:
            self.app(CLOSE_NOTICES)  # not by the mouse: they move while they come and go
            if self.is_shown("error_dismiss"):
                with contextlib.suppress(Error):  # a dialog that came later lies over it
                    self.click("error_dismiss", seconds=2)
            if self.messages():
                self.page.keyboard.press("Escape")
            return not self.messages()

        self.wait_until(close, 10, "a dialog is still open")

    def open_template(self, name: str, *, browse: bool = True) -> None:
        """Choose a template of ours in the template browser, and wait until its nodes are there.

        Args:
            browse: open the template browser first.
        """
        if browse:
            self.click("templates")
        self.app("for (const node of app.canvas.graph.nodes) node.old = true")
        self.click("category", PACK)

        def choose() -> bool:  # a click is lost while the list is still being drawn
            if self.find("card", name).is_visible():
                self.click("card", name)
            with contextlib.suppress(Error):
                self.wait_for(
                    f"{APP}.canvas.graph.nodes.length && !{APP}.canvas.graph.nodes.some(node => node.old)", seconds=10
                )
                return True
            return False

        def scroll() -> bool:  # 1.27 draws further cards when the last one comes into view
            with contextlib.suppress(Error):
                self.find("last_card").scroll_into_view_if_needed(timeout=2000)
            return self.is_shown("card", name)

        self.wait_until(scroll, 60, f"the template browser does not show {name}")
        self.wait_until(choose, 30, f"the template {name} is not open")
        self.app(STILL)  # the view is fitted, and a dialog about what is missing comes, after the nodes

    def load(self, workflow: dict) -> None:
        """Open a workflow as from a file: it takes half the time of a template."""
        self.app("await app.loadGraphData(arguments[0])", workflow)
        self.app(STILL)

    def drag_from_library(self, title: str) -> int:
        """Find a node in the node library, drag it into the middle of the canvas, and return its id."""
        before = set(self.nodes())
        self.click("library")
        self.find("library_search").wait_for()
        if self.is_shown("library_tab"):
            self.click("library_tab")
        self.click("library_search")
        self.replace_text(title)
        leaf = self.find("library_leaf", title)
        leaf.wait_for()
        box = leaf.bounding_box()
        start = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        target = self.canvas_point(0.6, 0.5)
        self.mouse(start, (start[0] + 20, start[1] + 5), target, (target[0] + 5, target[1] + 5))
        added = self.new_node(before)
        self.click("library")
        return added

    def new_node(self, before: set[int]) -> int:
        (added,) = self.wait_until(lambda: set(self.nodes()) - before, 10, "no node was added to the graph")
        return added

    def canvas_point(self, x: float, y: float) -> tuple[float, float]:
        """A point of the canvas in the window, from fractions of its width and height."""
        left, top, width, height = self.app(
            "const box = app.canvas.canvas.getBoundingClientRect(); return [box.x, box.y, box.width, box.height]"
        )
        return left + x * width, top + y * height

    def where(self, node: int, part: str, name: str = "", *, moves: bool = True) -> tuple[float, float]:
        """The place of a node's title, or of its input, output or widget of a name.

        Args:
            moves: bring the node into the middle first.
        """
        return tuple(self.app(GEOMETRY, node, part, name, moves))

    def set_widget(self, node: int, name: str, value) -> None:
        """Set a widget by mouse and keyboard: a text, a number (both typed), or a choice (from its menu)."""
        kind = self.app(
            "const [id, name] = arguments, widgets = app.canvas.graph.getNodeById(id).widgets;"
            "const one = widgets.find(one => one.name == name);"
            "return one.element || one.inputEl ? 'text' : one.type",
            node,
            name,
        )
        if kind == "combo":
            self.mouse(self.where(node, "widget", name))
            self.click("menu_entry", value)
        elif kind == "text":
            self.mouse(self.where(node, "widget", name))
            self.replace_text(value)
        else:
            # a page that is still moving the graph takes a click for a drag
            self.wait_until(lambda: self.open_prompt(node, name), 20, f"no field to type {name} into is shown")
            self.replace_text(str(value))
            self.page.keyboard.press("Enter")
        shown = self.nodes()[node]["widgets"][name]
        if shown != value:
            raise RuntimeError(f"widget {name} shows {shown!r} after {value!r} was put in")

    def open_prompt(self, node: int, name: str) -> bool:
        self.mouse(self.where(node, "widget", name))
        with contextlib.suppress(Error):
            self.find("prompt").wait_for(timeout=5000)
        return self.is_shown("prompt")

    def connect(self, source: int, output: str, target: int, name: str) -> None:
        """Put two nodes beside each other, away from the others, and drag a link from one to the other."""
        self.app(
            "const [source, target] = [...arguments].map(id => app.canvas.graph.getNodeById(id));"
            "const free = Math.max(...app.canvas.graph.nodes.map(node => node.pos[1] + node.size[1])) + 500;"
            "source.pos = [0, free]; target.pos = [source.size[0] + 80, free];",
            source,
            target,
        )
        end = self.where(target, "input", name)
        begin = self.where(source, "output", output, moves=False)
        self.mouse(begin, (begin[0] + 20, begin[1]), end)

    def queued(self) -> dict:
        """What Run would queue, in API form."""
        return self.app("return (await app.graphToPrompt()).output")

    def watch(self) -> None:
        """Watch what arrives from now on."""
        self.app(WATCH)

    def run(self) -> None:
        """Press Run; what arrives from then on is watched."""
        self.watch()
        self.click("run")

    def enter(self, node: int) -> None:
        """Show the inside of a subgraph."""
        self.app(
            "const node = app.canvas.graph.getNodeById(arguments[0]); app.canvas.openSubgraph(node.subgraph, node);",
            node,
        )
        self.wait_for(f"!{APP}.canvas.graph.isRootGraph", seconds=10)

    def leave(self) -> None:
        """Show the whole graph again."""
        self.app("app.canvas.setGraph(app.graph.rootGraph ?? app.graph)")
        self.wait_for(f"{APP}.canvas.graph.isRootGraph", seconds=10)

    def wait_for_end(self, seconds: float) -> dict:
        """Wait until the run has ended; what arrived meanwhile."""
        self.wait_for("window.watched.end !== null", seconds)
        return self.page.evaluate("window.watched")

    def wait_for_video(self, seconds: float = 20) -> dict:
        """Wait until a saved video is shown and can be played: its width, height, seconds and file name."""
        shown = (
            "const shown = [...document.querySelectorAll('video')]"
            ".filter(one => one.checkVisibility() && one.readyState >= 2 && one.currentSrc.includes('/view?'));"
            "return shown.map(one => ({width: one.videoWidth, height: one.videoHeight, seconds: one.duration, "
            "name: new URL(one.currentSrc).searchParams.get('filename')}));"
        )
        return self.wait_until(lambda: self.app(shown), seconds, "no video is shown")[0]

    def read_error(self, words: str, seconds: float = 30) -> str:
        """Open the notice of an error and its details until words can be read; all that can be read then."""
        self.find("error").wait_for()

        def read() -> str:
            for further in ("error_panel", "error_more"):
                if words not in self.text() and self.is_shown(further):
                    with contextlib.suppress(Error):  # it may have gone in between
                        self.click(further, seconds=2)
            return text if words in (text := self.text()) else ""

        return self.wait_until(read, seconds, f"{words!r} can't be read in the page")

    def open_help(self, node: int) -> str:
        """Select a node, press the info button above it, and return the text of the help page."""
        self.mouse(self.where(node, "title"))
        self.click("help_button")
        return self.find("help").inner_text()
