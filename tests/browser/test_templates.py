"""The pack in ComfyUI's own front end: the first video, templates, nodes, widgets, errors and help."""

import json

import pytest
from cogvideox_fun.tools import comfyui_server as comfy
from cogvideox_fun.tools import media
from export_api import API, WORKFLOWS, queued
from front_end import FrontEnd

NANO = "try_it_without_a_download"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
SAMPLER, BUILDER = "CogVideoXFunSampler", "CogVideoXFunStartEndImage"
ENCODE, RESIZE = "CogVideoXFunVAEEncode", "CogVideoXFunMaskResize3D"
ROOM = """
const [upper, lower] = [...arguments].map(id => app.graph.getNodeById(id));
return lower.pos[1] - LiteGraph.NODE_TITLE_HEIGHT - (upper.pos[1] + upper.size[1]);
"""


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
    front.open_template(NANO, browse=False)
    assert front.messages() == []
    front.run()
    watched = front.wait_for_end(180)
    assert watched["end"] == "success" and front.messages() == [] and front.clicks == 3

    steps = [value for value, total in watched["progress"] if total == 20]
    assert steps[-1] == 20 and len(set(steps)) >= 19, "the sampler's steps"
    assert len(watched["previews"]) >= 10 and watched["previews"][0] in ("image/jpeg", "image/png")
    assert "noise augmentation: 0, the model's configuration asks for none" in watched["texts"]
    assert front.app(ROOM, front.node(ENCODE), front.node(RESIZE)) >= 0, "the line hides the next node"

    front.where(front.node("SaveVideo"), "title")
    video = front.wait_for_video()
    assert (video["width"], video["height"]) == (128, 128)
    assert video["seconds"] == pytest.approx(17 / 8, abs=0.1)
    (path,) = (base / "output").rglob(video["name"])
    saved = media.read_video(path)
    assert len(saved) == 17 and saved.std() > 0.05
    assert front.console_errors() == []


@pytest.mark.parametrize("name", NAMES)
def test_every_template_opens_and_queues_its_api_form(front, name):
    """From the template browser, without a message; tests/data/api holds what it queues."""
    front.open_template(name)
    assert not any(node["missing"] for node in front.nodes().values())
    assert front.messages() == []
    assert queued(front) == json.loads((API / f"{name}.json").read_text(encoding="utf-8")), "run make api"


def test_widgets_set_in_the_page_are_what_runs(front, server):
    front.open_template(NANO)
    sampler, builder, prompt = (front.node(name) for name in (SAMPLER, BUILDER, "Positive prompt"))
    wanted = {
        sampler: {"steps": 2, "cfg": 1.5, "sampler_name": "euler"},
        builder: {"length": 9},
        prompt: {"text": "a blue circle moves up over the fog"},
    }
    for node, values in wanted.items():
        for name, value in values.items():
            front.set_widget(node, name, value)
    front.run()
    assert front.wait_for_end(60)["end"] == "success"
    (run,) = server.get("/history?max_items=1").values()
    for node, values in wanted.items():
        assert values.items() <= run["prompt"][2][str(node)]["inputs"].items()
    assert front.messages() == []


def test_a_missing_model_is_explained_in_the_page(front, base):
    """What Run gives in a template whose model is not there: where it goes and how it gets there."""
    front.open_template("text_to_video")
    front.run()
    shown = front.read_error(str(base / "models" / "CogVideoX_Fun"))
    assert comfy.MODEL_NAME in shown
    assert all("rompt" in error for error in front.console_errors()), "only that the prompt was refused"


def test_an_error_of_a_node_is_read_in_the_page(front):
    front.open_template(NANO)
    front.set_widget(front.node(BUILDER), "length", 1)
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


def test_the_nodes_are_in_chinese(chinese):
    """Titles, the names of inputs, and the help page."""
    wanted = json.loads((comfy.ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    chinese.open_template(NANO)
    ours = {node["type"]: node["title"] for node in chinese.nodes().values() if node["type"] in wanted}
    assert SAMPLER in ours and ours == {kind: wanted[kind]["display_name"] for kind in ours}
    sampler = chinese.node(SAMPLER)
    label = chinese.app(
        "return app.graph.getNodeById(arguments[0]).widgets.find(one => one.name == 'steps').label", sampler
    )
    assert label == wanted[SAMPLER]["inputs"]["steps"]["name"]
    page = chinese.open_help(sampler)
    assert "dynamic_cfg" in page and any("\u4e00" <= letter <= "\u9fff" for letter in page)
