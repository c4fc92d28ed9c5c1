"""The host's front end in a browser, used as a person uses it: templates, library, widgets, Run, errors and help.

Where the front ends of the supported hosts differ (1.27 of ComfyUI 0.3.64, 1.49 of 0.33.0), one XPath of WHERE finds
both; the comments there say which part is whose.
"""

import contextlib
import re
import time
from collections.abc import Sequence

from webdriver import KEYS, Page

PACK = "cogvideox-fun"  # the folder in custom_nodes, which is the name of the templates' category
APP = "window.comfyAPI?.app?.app"
READY = f"{APP}?.graph && window.LiteGraph?.registered_node_types?.SaveVideo && {APP}.canvas?.canvas?.offsetParent"

IN_DIALOG = "//*[@role='dialog' or contains(@class, 'p-dialog')]"
WHERE = {
    "templates": "//button[contains(@class, 'templates-tab-button')]",
    # 1.27 an option of a list box, 1.49 a span in a button
    "category": IN_DIALOG + "//*[self::span or self::li][normalize-space() = '{}']",
    "card": "//*[@data-testid = 'template-workflow-{}']",
    # 1.27 the first half of a split button, 1.49 a button
    "run": "//*[@data-testid = 'queue-button'][self::button] | //*[@data-testid = 'queue-button']//button[1]",
    "library": "//button[contains(@class, 'node-library-tab-button')]",
    # 1.49 has tabs and opens the one with essential nodes; 1.27 has neither
    "library_tab": "//*[@role = 'tab'][normalize-space() = 'All' or normalize-space() = 'All nodes']",
    "library_search": "//*[contains(@class, 'side-bar-panel')]//input[@type = 'text' or @role = 'combobox']",
    "library_leaf": "//*[contains(@class, 'tree-leaf')]//span[normalize-space() = '{0}']"  # 1.27
    " | //*[@draggable = 'true'][normalize-space() = '{0}']",  # 1.49
    "search": "//*[contains(@class, 'comfy-vue-node-search-container')]//input | //*[@role = 'search']//input",
    "search_result": "//*[@role = 'option'][contains(normalize-space(), '{}')]",
    "prompt": "//*[contains(@class, 'graphdialog')]//input",
    "menu_entry": "//*[contains(@class, 'litecontextmenu')]//*[contains(@class, 'litemenu-entry')][. = '{}']",
    "fit_view": "//button[starts-with(@aria-label, 'Fit View')]",
    "help_button": "//*[@data-testid = 'info-button']",
    "help": "//*[contains(@class, 'node-help-content')]//*[contains(@class, 'markdown-content')]",
    # 1.27 shows errors in a dialog; 1.49 in a note over the canvas that leads to a panel with more behind an icon
    "error": IN_DIALOG + " | //*[@data-testid = 'error-overlay']",
    "error_dismiss": "//*[@data-testid = 'error-overlay-dismiss']",
    "error_panel": "//*[@data-testid = 'error-overlay-see-errors']",
    "error_more": "//button[@aria-expanded = 'false'][.//i[contains(@class, 'lucide--info')]]",
}

# Dialogs, notices in a corner, and 1.49's note over the canvas, as a CSS selector.
MESSAGES = "[role=dialog], [role=alertdialog], .p-dialog, .p-toast-message, [data-testid=error-overlay]"

# What the host itself writes to the console as an error, and why it is none of ours.
HOST_NOISE = {
    r"/user\.css|/favicon\.ico": "files that a user or a theme may add, and that are asked for on every load",
    r"/api/userdata": "settings, workflows and blueprints that a new user has not saved yet",
    r"//api\.comfy\.org/|//registry\.comfy\.org/": "the host's own service, which a test does not reach",
    r"^https://huggingface\.co/Comfy-Org/": "1.49 asks for the sizes of the models in the graph that it opens with",
    r"accessed before initialization": "1.49 asks its own graph too early",
    r"/docs/\w+/en\.md": "help in a folder per language, asked for first; ours is one page in English",
    r"_ctx\.\$t is not a function": "1.27 draws the picture of a node that is dragged without its translations",
    r"Cannot read properties of undefined \(reading 'id'\)": "1.27, on the first load of a new user",
}

WATCH = """
const app = window.comfyAPI.app.app, api = window.comfyAPI.api.api;
if (!window.watched) {
    const on = (name, note) => api.addEventListener(name, event => note(event.detail));
    on('progress', detail => window.watched.progress.push([detail.value, detail.max]));
    on('b_preview', blob => window.watched.previews.push([blob.type, blob.size]));
    on('execution_success', () => window.watched.end = 'success');
    on('execution_error', detail => window.watched.end = detail.exception_message);
    new MutationObserver(() => window.watched.titles.push(document.title))
        .observe(document.querySelector('title'), {childList: true, characterData: true, subtree: true});
    setInterval(() => {
        for (const [id, urls] of Object.entries(app.nodePreviewImages)) if (urls?.length) window.watched.shown[id] = 1;
    }, 50);
}
window.watched = {progress: [], previews: [], shown: {}, titles: [], end: null};
"""

STILL = """
const ds = window.comfyAPI.app.app.canvas.ds, view = () => [ds.scale, ...ds.offset].join();
for (let before = view(), same = 0; same < 6; before = view()) {
    await new Promise(done => setTimeout(done, 100));
    same = view() == before ? same + 1 : 0;
}
"""

GEOMETRY = """
const [id, part, name] = arguments;
const app = window.comfyAPI.app.app, canvas = app.canvas, node = app.graph.getNodeById(id);
const view = () => [canvas.ds.scale, ...canvas.ds.offset].join();
for (let tries = 0; tries < 20; tries++) {  // the front end may still be moving its view
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


class FrontEnd:
    """The front end of one host in one window."""

    def __init__(self, page: Page, url: str):
        self.page = page
        self.url = url

    def open(self) -> None:
        """Load the page; dialogs that open by themselves stay open."""
        self.page.open(self.url)
        self.page.wait_for(READY, seconds=90)
        self.page.run(WATCH)

    def app(self, script: str, *arguments):
        """Run the body of a function that sees the front end's ``app``."""
        return self.page.run(f"const app = {APP}; {script}", *arguments)

    # what is on the screen

    def nodes(self) -> dict[int, dict]:
        """Of every node of the graph, by its id: type, title, widgets and whether it is red for missing."""
        found = self.app(
            "return app.graph.nodes.map(node => ({id: Number(node.id), type: node.type, title: node.getTitle(), "
            "missing: Boolean(node.has_errors), "
            "widgets: Object.fromEntries((node.widgets ?? []).map(widget => [widget.name, widget.value ?? null]))}))"
        )
        return {node["id"]: node for node in found}

    def node(self, kind: str) -> int:
        """The id of the only node of a type."""
        (found,) = (key for key, node in self.nodes().items() if node["type"] == kind)
        return found

    def messages(self) -> list[str]:
        """The text of every dialog, notice and error that is shown now, without repeated blanks."""
        found = self.page.run(
            "return [...document.querySelectorAll(arguments[0])].filter(one => one.checkVisibility())"
            ".map(one => one.innerText)",
            MESSAGES,
        )
        return [re.sub(r"\s+", " ", text).strip() for text in found]

    def wait_for_messages(self, seconds: float = 15) -> list[str]:
        """Wait until there is a message; all of them, or none if none came."""
        deadline = time.monotonic() + seconds
        while not (found := self.messages()) and time.monotonic() < deadline:
            time.sleep(0.3)
        return found

    def text(self) -> str:
        """Everything that can be read in the page, without repeated blanks."""
        return re.sub(r"\s+", " ", self.page.run("return document.body.innerText"))

    def console_errors(self) -> list[str]:
        """Errors written to the console since the last call, without the host's own of HOST_NOISE."""
        errors = [entry["message"] for entry in self.page.log() if entry["level"] == "SEVERE"]
        return [error for error in errors if not any(re.search(pattern, error) for pattern in HOST_NOISE)]

    # what a person does

    def close_dialogs(self) -> None:
        """Close every dialog and notice.

        Raises:
            RuntimeError: one stays.
        """
        for _ in range(10):
            if not self.messages():
                return
            if self.page.find_all(WHERE["error_dismiss"]):
                self.page.click(WHERE["error_dismiss"])
            else:
                self.page.type(KEYS["escape"])
            time.sleep(0.5)
        raise RuntimeError(f"can't be closed: {self.messages()}")

    def open_templates(self) -> None:
        self.page.click(WHERE["templates"])

    def open_template(self, name: str) -> None:
        """Choose a template of ours in the open template browser, and wait until its nodes are there."""
        self.app("for (const node of app.graph.nodes) node.old = true")
        self.page.click(WHERE["category"].format(PACK))
        self.page.click(WHERE["card"].format(name))
        self.page.wait_for(f"{APP}.graph.nodes.length && !{APP}.graph.nodes.some(node => node.old)", seconds=20)
        self.page.run(STILL)  # the view is fitted, and a dialog about what is missing comes, after the nodes

    def drag_from_library(self, title: str) -> int:
        """Find a node in the node library, drag it into the middle of the canvas, and return its id."""
        before = set(self.nodes())
        if not self.page.find_all(WHERE["library_search"]):
            self.page.click(WHERE["library"])
            self.page.find(WHERE["library_search"])
            for _tab in self.page.find_all(WHERE["library_tab"]):
                self.page.click(WHERE["library_tab"])
        self.page.click(WHERE["library_search"])
        self.page.type("a", held=KEYS["control"])
        self.page.type(title)
        leaf = self.page.centre(WHERE["library_leaf"].format(title))
        target = self.canvas_point(0.6, 0.5)
        self.page.mouse(leaf, (leaf[0] + 20, leaf[1] + 5), target, (target[0] + 5, target[1] + 5))
        return self.new_node(before)

    def close_library(self) -> None:
        self.page.click(WHERE["library"])

    def search_and_add(self, words: str, title: str) -> int:
        """Double-click the canvas where it is empty, search, and place the node of that title there."""
        before = set(self.nodes())
        self.app("app.canvas.ds.scale = 1; app.canvas.ds.offset = [-9000, -9000]; app.canvas.draw(true, true)")
        place = self.canvas_point(0.5, 0.5)
        self.page.mouse(place, times=2)
        self.page.click(WHERE["search"])
        self.page.type(words)
        self.page.click(WHERE["search_result"].format(title))
        if set(self.nodes()) == before or self.app("return Boolean(app.canvas.state?.ghostNodeId ?? false)"):
            self.page.mouse(place)  # 1.49: the node follows the mouse until the next click
        return self.new_node(before)

    def new_node(self, before: set[int], seconds: float = 10) -> int:
        deadline = time.monotonic() + seconds
        while not set(self.nodes()) - before:
            if time.monotonic() > deadline:
                raise TimeoutError("no node was added to the graph")
            time.sleep(0.2)
        (added,) = set(self.nodes()) - before
        return added

    def canvas_point(self, x: float, y: float) -> tuple[float, float]:
        """A point of the canvas in the window, from fractions of its width and height."""
        left, top, width, height = self.app(
            "const box = app.canvas.canvas.getBoundingClientRect(); return [box.x, box.y, box.width, box.height]"
        )
        return left + x * width, top + y * height

    def where(self, node: int, part: str, name: str = "") -> tuple[float, float]:
        """Bring a node into the middle; the place of its title, or of an input, output or widget of that name."""
        return tuple(self.page.run(GEOMETRY, node, part, name))

    def label(self, node: int, name: str) -> str:
        """What a widget is called in the language of the page."""
        return self.app(
            "const [id, name] = arguments;"
            "const widget = app.graph.getNodeById(id).widgets.find(one => one.name == name);"
            "return widget.label ?? widget.name",
            node,
            name,
        )

    def out_of_view(self, node: int) -> bool:
        """Whether a part of a node's width lies outside of the canvas."""
        return self.app(
            "const [id] = arguments, canvas = app.canvas, node = app.graph.getNodeById(id);"
            "const [left] = canvas.ds.convertOffsetToCanvas(node.pos);"
            "return left < 0 || left + node.size[0] * canvas.ds.scale > canvas.canvas.getBoundingClientRect().width",
            node,
        )

    def set_widget(self, node: int, name: str, value) -> None:
        """Set a widget by mouse and keyboard: a text, a number (both typed), or a choice (from its menu)."""
        kind = self.app(
            "const [id, name] = arguments, one = app.graph.getNodeById(id).widgets.find(one => one.name == name);"
            "return one.element || one.inputEl ? 'text' : one.type",
            node,
            name,
        )
        if kind == "combo":
            self.page.mouse(self.where(node, "widget", name))
            self.page.click(WHERE["menu_entry"].format(value))
        else:
            if kind == "text":
                self.page.mouse(self.where(node, "widget", name))
            else:
                self.open_prompt(node, name)
            self.page.type("a", held=KEYS["control"])
            self.page.type(str(value) or "\ue003")  # backspace empties a selected text
            if kind != "text":
                self.page.type(KEYS["enter"])
        shown = self.nodes()[node]["widgets"][name]
        if shown != value:
            raise RuntimeError(f"widget {name} shows {shown!r} after {value!r} was put in")

    def open_prompt(self, node: int, name: str) -> None:
        """Click a number until its prompt opens: a page that is still moving the graph takes the click for a drag."""
        for last in (False, False, True):
            self.page.mouse(self.where(node, "widget", name))
            try:
                self.page.find(WHERE["prompt"], 7)
                return
            except TimeoutError:
                if last:
                    raise

    def connect(self, source: int, output: str, target: int, name: str) -> None:
        """Put two nodes beside each other, away from the others, and drag a link from one to the other."""
        self.app(
            "const [source, target] = [...arguments].map(id => app.graph.getNodeById(id));"
            "const free = Math.max(...app.graph.nodes.map(node => node.pos[1] + node.size[1])) + 500;"
            "source.pos = [0, free]; target.pos = [source.size[0] + 80, free];",
            source,
            target,
        )
        end = self.where(target, "input", name)
        begin = self.app(
            "const [id, name] = arguments, node = app.graph.getNodeById(id), canvas = app.canvas;"
            "const at = node.getOutputPos(node.outputs.findIndex(slot => slot.name == name));"
            "const [x, y] = canvas.ds.convertOffsetToCanvas(at), box = canvas.canvas.getBoundingClientRect();"
            "return [box.x + x, box.y + y]",
            source,
            output,
        )
        self.page.mouse(tuple(begin), (begin[0] + 20, begin[1]), end)

    def queued(self) -> dict:
        """What Run would queue, in API form."""
        return self.app("return (await app.graphToPrompt()).output")

    def run(self) -> None:
        """Press Run; what arrives from then on is watched."""
        self.page.run(WATCH)
        self.page.click(WHERE["run"])

    def wait_for_end(self, seconds: float) -> dict:
        """Wait until the run has ended; what arrived meanwhile."""
        self.page.wait_for("window.watched.end !== null", seconds)
        return self.page.run("return window.watched")

    def fit_view(self) -> None:
        """Bring the whole graph into view, by the button for it below the canvas."""
        self.page.click(WHERE["fit_view"])

    def shown_videos(self) -> list[dict]:
        """The saved videos that are shown and can be played: width, height, seconds and file name."""
        return self.page.run(
            "const shown = [...document.querySelectorAll('video')]"
            ".filter(one => one.checkVisibility() && one.readyState >= 2 && one.currentSrc.includes('/view?'));"
            "return shown.map(one => ({width: one.videoWidth, height: one.videoHeight, seconds: one.duration, "
            "name: new URL(one.currentSrc).searchParams.get('filename')}));"
        )

    def wait_for_video(self, seconds: float = 20, other_than: Sequence[dict] = ()) -> dict:
        """Wait until a saved video is shown, one that was not shown before; see `shown_videos`.

        Raises:
            TimeoutError: there is none, or it is out of view.
        """
        names = {video["name"] for video in other_than}
        deadline = time.monotonic() + seconds
        while True:
            for video in self.shown_videos():
                if video["name"] not in names:
                    return video
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {seconds} seconds no new video is shown: {self.messages()}")
            time.sleep(0.3)

    def read_error(self, words: str, seconds: float = 30) -> str:
        """Open the notice of an error and its details until words can be read; all that can be read then."""
        self.page.find(WHERE["error"])
        deadline = time.monotonic() + seconds
        while words not in (text := self.text()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {seconds} seconds {words!r} can't be read in the page: {self.messages()}")
            for further in ("error_panel", "error_more"):
                if self.page.find_all(WHERE[further]):
                    with contextlib.suppress(TimeoutError, RuntimeError):  # it may have gone in between
                        self.page.click(WHERE[further], seconds=2)
            time.sleep(0.3)
        return text

    def open_help(self, node: int) -> str:
        """Select a node, press the info button above it, and return the text of the help page."""
        self.page.mouse(self.where(node, "title"))
        self.page.click(WHERE["help_button"])
        self.page.find(WHERE["help"])
        return self.page.run("return document.querySelector('.node-help-content .markdown-content').innerText")
