"""The pack in ComfyUI's own front end: the first video, templates, apps, widgets, errors and help."""

import json
import re
import shutil
import uuid

import pytest
from cogvideox_fun.tools import comfyui_server as comfy
from cogvideox_fun.tools import media
from export_api import API, WORKFLOWS, queued
from front_end import STILL, FrontEnd
from templates.document import TASK, name_of
from templates.graphs import INP
from templates.kinds import SAM3
from templates.notes import SAM3_FILE
from templates.tasks import EDITIONS

NAMES = {name_of(task, nano): nano for task, nano in EDITIONS}
NANO_NAMES = [name for name, nano in NAMES.items() if nano]
START_END, TEXT = "CogVideoX-Fun Start and End Image to Video (nano)", "CogVideoX-Fun Text to Video"
LONGER = {"Extend": 29, "Long Video": 41}  # frames; the other nano editions make 17
SAID = "$$cogvideox-fun-said"
SERIALIZED = """
const graph = app.graph.serialize();
return [...graph.nodes, ...graph.definitions.subgraphs.flatMap(one => one.nodes)];
"""
FEW_STEPS = """
app.graph.nodes.flatMap(node => node.widgets ?? []).find(widget => widget.name == 'steps').value = 2;
"""
TITLES = """
const context = document.createElement('canvas').getContext('2d');
context.font = `${LiteGraph.NODE_TEXT_SIZE}px ${LiteGraph.NODE_FONT}`;
const kinds = Object.keys(LiteGraph.registered_node_types).filter(kind => kind.startsWith('CogVideoXFun'));
return kinds.map(kind => {
    const node = LiteGraph.createNode(kind);
    return [node.title, context.measureText(node.title).width, node.size[0]];
});
"""
UNDO = """
const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
(tracker.captureCanvasState ?? tracker.checkState).call(tracker);
await tracker.undo();
"""
GRAPH_ID = "return (app.graph.rootGraph ?? app.graph).id"
SAMPLER, BUILDER = "CogVideoXFunSampler", "CogVideoXFunStartEndImage"


def read(name: str) -> dict:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def new_user(server, browser, base):
    """A window of a user without settings; a file must not keep those of the tests before."""
    (base / "user" / "default" / "comfy.settings.json").unlink(missing_ok=True)
    front = FrontEnd(browser, server.url)
    front.open()
    yield front
    front.close()


def test_first_video_takes_three_clicks(new_user, base):
    """The front end opens its template browser for a new user: our category, the template, Run."""
    front = new_user
    (message,) = front.wait_until(front.messages, 15, "the template browser did not open")
    assert "Template" in message
    front.open_template(START_END, browse=False)
    assert front.messages() == []
    front.run()
    watched = front.wait_for_end(180)
    assert watched["end"] == "success" and front.messages() == [] and front.clicks == 3

    steps = [value for value, total in watched["progress"] if total == 20]
    assert steps[-1] == 20 and len(set(steps)) >= 19, "the sampler's steps"
    assert len(watched["previews"]) >= 10 and watched["previews"][0] in ("image/jpeg", "image/png")
    assert "noise augmentation: 0, the model's configuration asks for none" in watched["texts"]

    front.where(front.node("SaveVideo"), "title")
    video = front.wait_for_video()
    assert (video["width"], video["height"]) == (128, 128)
    assert video["seconds"] == pytest.approx(17 / 8, abs=0.1)
    (path,) = (base / "output").rglob(video["name"])
    saved = media.read_video(path)
    assert len(saved) == 17 and saved.std() > 0.05
    assert front.console_errors() == []


@pytest.mark.parametrize("name, nano", NAMES.items())
def test_every_template_opens_and_queues_its_api_form(front, info, name, nano):
    """From the template browser, with no message but which model is missing; tests/data/api holds what it queues.

    A ComfyUI without the nodes of a template names them.
    """
    front.open_template(name)
    shown = front.nodes()
    assert len(shown) <= 5
    wanted = json.loads((API / f"{name}.json").read_text(encoding="utf-8"))
    if missing := {node["class_type"] for node in wanted.values()} - info.keys():
        assert missing == SAM3
        assert front.wait_until(lambda: all(kind in " ".join(front.messages()) for kind in SAM3), 10, "not named")
        return
    assert queued(front) == wanted, "run make api"
    if nano:
        assert not any(node["missing"] for node in shown.values())
        assert front.messages() == []
        return
    (model,) = (node["inputs"]["model"] for node in wanted.values() if "CogVideoXFunModelLoader" == node["class_type"])

    def notice() -> str:  # newer front ends have one of their own for files
        return next((message for message in front.messages() if f"Missing: {model}" in message), "")

    message = front.wait_until(notice, 10, "the missing model is not named")
    assert f"https://huggingface.co/alibaba-pai/{model} into models/CogVideoX_Fun/{model}." in message
    loras = [node["inputs"]["lora_name"] for node in wanted.values() if "lora_name" in node["inputs"]]
    assert all(f"{lora} into models/loras" in message for lora in loras)
    if any(node["class_type"] in SAM3 for node in wanted.values()):  # this one ComfyUI itself names
        assert front.wait_until(lambda: SAM3_FILE in " ".join(front.messages()), 10, "the file of SAM3 is not named")


@pytest.fixture(scope="module", params=NANO_NAMES)
def edition(window, request) -> str:
    """Of the whole module, so that the tests of one edition follow each other with it open."""
    window.close_dialogs()
    window.load(read(request.param))
    window.app(FEW_STEPS)
    return request.param


@pytest.mark.long
def test_every_nano_edition_runs_to_a_video(edition, front):
    front.run()
    assert front.wait_for_end(180)["end"] == "success" and front.messages() == []
    front.where(front.node("SaveVideo"), "title")
    video = front.wait_for_video()
    assert (video["width"], video["height"]) == (128, 128)
    frames = next((count for task, count in LONGER.items() if task in edition), 17)
    assert video["seconds"] == pytest.approx(frames / 8, abs=0.15)
    said = front.nodes()[TASK]["widgets"].get(SAID, "")
    assert ("no RAFT found, so a simpler optical flow is used" in said) == ("Follows" in edition)
    lines = said.splitlines()
    assert len(lines) == len(set(lines)), "what several nodes inside say alike is shown once"


@pytest.mark.long
def test_every_nano_edition_runs_as_an_app(edition, front, server):
    """Just sources, prompt, seed and Run; after the test above, ComfyUI has the result."""
    if not front.is_shown("app"):
        pytest.skip("this front end has no App mode (1.49 and newer have)")
    front.click("app")
    front.close_dialogs()  # its tour
    text = front.text()
    assert "prompt" in text and "seed" in text and "cfg" not in text
    before = set(server.get("/history"))
    front.watch()
    front.click("app_run")
    assert front.wait_for_end(180)["end"] == "success"
    assert len(set(server.get("/history")) - before) == 1
    front.wait_for_video()
    front.click("graph")


def test_a_new_node_is_as_wide_as_its_title(front):
    """With 60 pixels for the dot on the left and the margin on the right."""
    found = front.app(TITLES)
    assert len(found) >= 22
    assert [title for title, text, width in found if text + 60 > width] == []


@pytest.mark.long
def test_what_a_run_reports_stays_under_its_node_until_it_runs_again(classic, front):
    """On the node inside, and on the task's node, which also shows what other nodes inside it report."""

    def run() -> str:
        front.run()
        assert front.wait_for_end(60)["end"] == "success"
        return front.nodes()[TASK]["widgets"].get(SAID, "")

    front.load(read("CogVideoX-Fun Video to Video (nano)"))
    for name, value in (("steps", 2), ("length", 21)):
        front.set_widget(TASK, name, value)
    noise = "noise augmentation: 0, the start of video to video gets none"
    shown = run()
    assert "length 21 -> 17: the model takes at most 17 frames" in shown and noise in shown
    front.set_widget(TASK, "cfg", 3)
    assert run() == shown, "what was not run again keeps its text"
    front.set_widget(TASK, "length", 9)
    shown = run()
    assert "9 frames" in shown and "21 -> 17" not in shown and shown.count(noise) == 1
    assert not any("9 frames" in str(node.get("widgets_values")) for node in front.app(SERIALIZED)), "it is not saved"
    front.enter(TASK)
    inside = {node["type"]: node["widgets"].get(SAID, "") for node in front.nodes().values()}
    assert "9 frames" in inside["CogVideoXFunClipFrames"] and inside["CogVideoXFunVAEEncode"] == noise
    front.leave()
    shown, workflow = (
        front.nodes()[TASK]["widgets"][SAID],
        front.app("return JSON.parse(JSON.stringify(app.graph.serialize()))"),
    )
    front.open_template(TEXT)
    assert not any(node["widgets"].get(SAID) for node in front.nodes().values())
    front.load(workflow)
    assert front.nodes()[TASK]["widgets"].get(SAID) == shown, "it comes back with its workflow"


@pytest.mark.long
def test_two_copies_of_a_template_do_not_share_what_their_runs_report(classic, front):
    """A template has no id, so that the page gives each copy its own."""
    for _copy in range(2):
        front.open_template("CogVideoX-Fun Text to Video (nano)")
    for name, value in (("steps", 1), ("length", 21)):
        front.set_widget(TASK, name, value)
    front.run()
    assert front.wait_for_end(60)["end"] == "success"
    shown = ["21 -> 17" in front.nodes()[TASK]["widgets"].get(SAID, "")]
    for back in (2, 1):  # the tab before the last, the last
        before = front.app(GRAPH_ID)
        front.page.locator(".workflow-tab").nth(-back).click()
        front.page.mouse.move(800, 450)  # 1.58 shows a picture of a tab that the mouse is on
        front.wait_until(lambda before=before: front.app(GRAPH_ID) != before, 10, "the other copy is not shown")
        front.app(STILL)
        shown.append("21 -> 17" in front.nodes()[TASK]["widgets"].get(SAID, ""))
    assert shown == [True, False, True]


def test_widgets_set_in_the_page_are_what_runs(classic, front, server):
    front.load(read(START_END))
    wanted = {"steps": 2, "cfg": 1.5, "length": 9, "prompt": "a blue circle moves up over the fog"}
    for name, value in wanted.items():
        front.set_widget(TASK, name, value)
    front.run()
    assert front.wait_for_end(60)["end"] == "success"
    (run,) = server.get("/history?max_items=1").values()
    ran = {}
    for node in run["prompt"][2].values():
        ran.setdefault(node["class_type"], node["inputs"])
    found = {"length": ran[BUILDER]["length"], "prompt": ran["CLIPTextEncode"]["text"]}
    assert found | {name: ran[SAMPLER][name] for name in ("steps", "cfg")} == wanted
    assert front.messages() == []


@pytest.mark.long
def test_a_seed_changes_after_a_run_unless_it_is_fixed(front):
    """That of a real template, here with the nano model, changes; a nano edition's first click repeats its card."""
    small = {
        "CogVideoXFunModelLoader": ["nano"],
        "CogVideoXFunEmptyLatent": [128, 128, 9],
        SAMPLER: [43, "randomize", 2],
    }

    def seed() -> int:
        return next(node["inputs"]["seed"] for node in front.queued().values() if node["class_type"] == SAMPLER)

    for name, changes in ((f"{TEXT} (nano)", False), (TEXT, True)):
        workflow = read(name)
        for node in workflow["definitions"]["subgraphs"][0]["nodes"]:
            if changes and node["type"] in small:
                node["widgets_values"][: len(small[node["type"]])] = small[node["type"]]
        front.load(workflow)
        first = seed()
        front.run()
        assert front.wait_for_end(60)["end"] == "success"
        assert (seed() != first) == changes


def test_a_missing_model_is_explained_in_the_page(front, base):
    """What Run gives in a template whose model is not there: where it goes and how it gets there."""
    front.open_template(TEXT)
    front.close_dialogs()
    front.run()
    shown = front.read_error(str(base / "models" / "CogVideoX_Fun"))
    assert f"https://huggingface.co/alibaba-pai/{INP}" in shown
    assert all("rompt" in error for error in front.console_errors()), "only that the prompt was refused"


BOXES = """
const notice = [...document.querySelectorAll('.p-toast-message, :has(> [data-testid=toast-close])')]
    .find(one => one.innerText.includes('Missing: '));
const panel = document.querySelector('[data-testid=properties-panel]');
return [notice, panel].map(one => one && (({left, right}) => [left, right])(one.getBoundingClientRect()));
"""


def test_the_notice_is_beside_the_panel_of_errors(front):
    front.open_template("CogVideoX-Fun Few Steps")  # ComfyUI names its LoRA, too
    front.wait_until(lambda: front.app(BOXES)[0], 10, "the missing model is not named")
    front.page.wait_for_timeout(3000)  # for the button, if there is one
    if not front.is_shown("error_panel"):
        pytest.skip("this front end has no panel of errors (1.49 and newer have)")
    front.click("error_panel")
    notice, panel = front.wait_until(lambda: all(boxes := front.app(BOXES)) and boxes, 10, "the panel did not open")
    assert 0 <= notice[0] and notice[1] <= panel[0]


def test_the_notice_goes_when_the_model_is_in_place_and_r_is_pressed(front, base):
    """What is still missing stays in it: here the start image, until it is there too."""
    workflow = read("CogVideoX-Fun Image to Video")
    (image,) = (node for node in workflow["nodes"] if node["type"] == "LoadImage")
    image["widgets_values"][0] = "later.png"
    model, picture = base / "models" / "CogVideoX_Fun" / INP, base / "input" / "later.png"

    def named() -> list[str]:
        """What each notice names."""
        found = [message.partition("Missing: ")[2] for message in front.messages() if "Missing: " in message]
        return [re.split(" Put | Choose ", message)[0] for message in found]

    def refreshed(*names: str) -> bool:
        front.page.keyboard.press("r")
        front.page.wait_for_timeout(1000)
        return front.wait_until(lambda: named() == list(names), 10, f"{named()} is named")

    front.load(workflow)
    try:
        assert front.wait_until(lambda: named() == [f"{INP}, later.png"], 10, "the files are not named")
        shutil.copytree(comfy.ROOT / "models" / "nano", model)
        assert refreshed("later.png")
        shutil.copy(base / "input" / "example.png", picture)
        assert refreshed()
    finally:
        shutil.rmtree(model, ignore_errors=True)
        picture.unlink(missing_ok=True)
    assert refreshed(f"{INP}, later.png")
    front.close_dialogs()
    front.open_template(START_END)  # so that the page asks for the picture now, and not in the next test
    front.console_errors()


def test_an_undo_does_not_bring_back_a_notice_that_was_closed(front):
    front.load(read(TEXT))
    front.wait_until(lambda: "Missing: " in str(front.messages()), 10, "the model is not named")
    front.close_dialogs()
    front.app("app.graph.getNodeById(arguments[0]).title = 'Mine'", TASK)
    front.app(UNDO)
    assert front.nodes()[TASK]["title"] != "Mine"
    front.page.wait_for_timeout(1000)
    assert "Missing: " not in str(front.messages())
    front.load(read(TEXT))
    front.wait_until(lambda: "Missing: " in str(front.messages()), 10, "another copy has no notice")


def test_a_missing_clip_is_named_as_soon_as_the_page_shows_it(front):
    """Of the two files of this template, only the one that is not in the input folder."""
    workflow = read("CogVideoX-Fun Region Inpaint")
    (clip,) = (node for node in workflow["nodes"] if node["type"] == "LoadVideo")
    clip["widgets_values"][0] = "mine.mp4"
    front.load(workflow)

    def notice() -> str:
        return next((message for message in front.messages() if f"Missing: {INP}, mine.mp4" in message), "")

    message = front.wait_until(notice, 10, "the missing clip is not named")
    assert message.count("Choose a file in ") == 1
    assert "Choose a file in Clip: mine.mp4 is not in ComfyUI's input folder." in message
    front.close_dialogs()
    front.open_template(START_END)  # so that the page asks for the clip now, and not in the next test
    front.console_errors()


def test_a_picture_that_is_not_in_the_list_but_there_is_not_missing(front, base):
    """Painted masks are in a subfolder of input, and others in output; ComfyUI's list has what is in input alone."""
    workflow = read("CogVideoX-Fun Start and End Image to Video")
    names = "clipspace/clipspace-painted-masked-1.png [input]", "made.png [output]"
    for node, name in zip((node for node in workflow["nodes"] if node["type"] == "LoadImage"), names, strict=True):
        node["widgets_values"] = [name, "image"]
        file, folder = name.rstrip("]").split(" [")
        (base / folder / file).parent.mkdir(exist_ok=True)
        shutil.copy(base / "input" / "example.png", base / folder / file)
    front.load(workflow)
    named = front.wait_until(lambda: [one for one in front.messages() if "Missing: " in one], 10, "no model is named")
    assert not any(".png" in message for message in named)
    front.close_dialogs()


def test_a_lora_whose_name_another_node_gives_is_not_missing(front):
    front.open_template("CogVideoX-Fun Few Steps")

    def is_named() -> bool:
        return any("fun_2b_few_steps.safetensors into models/loras" in message for message in front.messages())

    front.wait_until(is_named, 10, "the missing LoRA is not named")
    front.app("""
        const slots = app.graph.nodes.flatMap(node => node.inputs ?? []);
        const slot = slots.find(slot => slot.widget?.name == 'lora_name');
        Object.defineProperty(slot, 'link', {get: () => 1}); // 1.58 takes no other value
    """)
    front.page.keyboard.press("r")
    front.wait_until(lambda: not is_named(), 10, "a linked name is named")
    front.close_dialogs()


def test_a_second_lora_inside_a_task_is_missing_too(front):
    workflow = read("CogVideoX-Fun LoRA (nano)")
    (inside,) = workflow["definitions"]["subgraphs"]
    (lora,) = (node for node in inside["nodes"] if node["type"] == "CogVideoXFunLoraLoader")
    second = {**lora, "id": 90, "widgets_values": ["gone.safetensors", *lora["widgets_values"][1:]]}
    second["inputs"] = [{**slot, "link": None} for slot in lora["inputs"]]
    second["outputs"] = [{**slot, "links": []} for slot in lora["outputs"]]
    inside["nodes"].append(second)
    inside["state"]["lastNodeId"] = 90
    front.load(workflow)
    front.wait_until(lambda: [one for one in front.messages() if "Missing: gone" in one], 10, "it is not named")
    front.close_dialogs()
    front.console_errors()


def test_the_picture_chosen_at_the_tasks_node_counts(classic, front, base):
    """Not what the node inside had before."""
    workflow = read("CogVideoX-Fun Text to Video (nano)")
    (inside,) = workflow["definitions"]["subgraphs"]
    (task,) = (node for node in workflow["nodes"] if node["type"] == inside["id"])
    link, slot = max(one["id"] for one in inside["links"]) + 1, len(inside["inputs"])
    inside["nodes"].append(
        {
            **{"id": 90, "type": "LoadImage", "pos": [0, 900], "size": [300, 300], "flags": {}, "order": 0, "mode": 0},
            "inputs": [{"name": "image", "type": "COMBO", "link": link, "widget": {"name": "image"}}],
            "outputs": [{"name": name, "type": name, "links": []} for name in ("IMAGE", "MASK")],
            "properties": {},
            "widgets_values": ["gone.png", "image"],
        }
    )
    inside["inputs"].append({"id": str(uuid.uuid4()), "name": "image", "type": "COMBO", "linkIds": [link]})
    ends = {"origin_id": -10, "origin_slot": slot, "target_id": 90, "target_slot": 0}
    inside["links"].append({"id": link, **ends, "type": "COMBO"})
    inside["state"].update(lastNodeId=90, lastLinkId=link)
    task["inputs"].append({"name": "image", "type": "COMBO", "link": None, "widget": {"name": "image"}})
    front.load(workflow)
    front.wait_until(lambda: [one for one in front.messages() if "Missing: gone.png" in one], 10, "it is not named")
    front.set_widget(task["id"], "image", "example.png")
    front.page.keyboard.press("r")
    front.wait_until(lambda: not any("gone.png" in one for one in front.messages()), 10, "the old picture is named")
    front.close_dialogs()
    front.open_template(START_END)  # so that the page asks for the picture now, and not in the next test
    front.console_errors()


@pytest.mark.long
@pytest.mark.parametrize("mode", [2, 4], ids=["muted", "bypassed"])
def test_what_a_node_that_is_off_names_is_not_missing(front, mode):
    workflow = read("CogVideoX-Fun Image to Video")
    (image,) = (node for node in workflow["nodes"] if node["type"] == "LoadImage")
    image.update(widgets_values=["gone.png", "image"], mode=mode)
    front.load(workflow)
    named = front.wait_until(lambda: [one for one in front.messages() if "Missing: " in one], 10, "no model is named")
    assert not any("gone.png" in message for message in named)
    front.close_dialogs()
    front.open_template(START_END)  # so that the page asks for the picture now, and not in the next test
    front.console_errors()


def test_missing_pictures_of_nodes_with_one_title_are_all_named(front):
    workflow = read("CogVideoX-Fun Start and End Image to Video")
    for node, name in zip((node for node in workflow["nodes"] if node["type"] == "LoadImage"), "ab", strict=True):
        node.update(title="Load Image", widgets_values=[f"{name}.png", "image"])
    front.load(workflow)

    def notice() -> str:
        return next((message for message in front.messages() if f"Missing: {INP}, a.png, b.png" in message), "")

    message = front.wait_until(notice, 10, "the missing pictures are not named")
    assert message.count("Choose a file in Load Image: ") == 2
    front.close_dialogs()
    front.open_template(START_END)  # so that the page asks for the pictures now, and not in the next test
    front.console_errors()


def test_an_error_of_a_node_is_read_in_the_page(classic, front):
    front.load(read(START_END))
    front.set_widget(TASK, "length", 1)
    front.run()
    assert "end_image has 1 frame" in front.wait_for_end(60)["end"]
    front.read_error("set length to 5 or more")


@pytest.fixture
def chinese(server, browser):
    """A window of a user who has chosen Simplified Chinese."""
    server.post("/settings/Comfy.TutorialCompleted", True)
    server.post("/settings/Comfy.Locale", "zh")
    front = FrontEnd(browser, server.url)
    front.open()
    front.close_dialogs()
    yield front
    front.close()
    server.post("/settings/Comfy.Locale", "en")


@pytest.mark.long
def test_the_nodes_are_in_chinese(chinese):
    """Titles, the names of inputs, and the help page."""
    wanted = json.loads((comfy.ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    chinese.open_template(START_END)
    chinese.enter(TASK)
    ours = {node["type"]: node["title"] for node in chinese.nodes().values() if node["type"] in wanted}
    assert SAMPLER in ours and ours == {kind: wanted[kind]["display_name"] for kind in ours}
    sampler = chinese.node(SAMPLER)
    label = chinese.app(
        "return app.canvas.graph.getNodeById(arguments[0]).widgets.find(one => one.name == 'sampler_name').label",
        sampler,
    )
    assert label == wanted[SAMPLER]["inputs"]["sampler_name"]["name"]
    page = chinese.open_help(sampler)
    assert "dynamic_cfg" in page and any("\u4e00" <= letter <= "\u9fff" for letter in page)
