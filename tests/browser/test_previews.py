"""The moving preview on the node that samples, in place of ComfyUI's own."""

import pytest

TEXT = "CogVideoX-Fun Text to Video (nano)"
OTHER = "CogVideoX-Fun Image to Video (nano)"
WIDGET = "$$cogvideox-fun-preview"
SHOWN = """
const picture = [...document.querySelectorAll('img.cogvideox-fun-preview')].find(one => one.checkVisibility());
if (!picture?.complete || !picture.naturalWidth) return null;
const data = await (await fetch(picture.src)).arrayBuffer();
const decoder = new ImageDecoder({type: 'image/webp', data});
await decoder.tracks.ready;
const box = picture.getBoundingClientRect();
if (!box.width) return null; // not laid out yet
const nodes = app.graph.nodes.filter(node => node.widgets?.some(widget => widget.name == arguments[0]));
return {
    frames: decoder.tracks.selectedTrack.frameCount,
    width: box.width, height: box.height, natural: [picture.naturalWidth, picture.naturalHeight],
    nodes: nodes.map(node => node.type),
};
"""
FOLLOW = """
const api = window.comfyAPI.api.api, name = arguments[0];
window.followed = [];
window.own = [];
api.addEventListener('cogvideox-fun.preview', ({detail}) => {
    const widgets = app.graph.nodes.flatMap(node => node.widgets ?? []).filter(widget => widget.name == name);
    window.followed.push(widgets.length == 1 && widgets[0].element.src.endsWith(detail.image));
});
api.addEventListener('progress', () => window.own.push(app.graph.nodes.some(node => node.imgs?.length)));
"""
MANY = """
app.graph.nodes.flatMap(node => node.widgets ?? []).find(widget => widget.name == 'steps').value = 1000;
"""
TWICE = """
const steps = app.graph.nodes.flatMap(node => node.widgets ?? []).find(widget => widget.name == 'steps');
for (const value of [999, 1000]) {  // more than it takes to open another workflow
    steps.value = value;
    await app.queuePrompt(0, 1);
}
"""
STOP = """
await fetch('/interrupt', {method: 'POST'});
"""
ENDS = """
const api = window.comfyAPI.api.api;
window.ends = 0;
api.addEventListener('execution_interrupted', () => {
    window.ends++;
    window.followed = [];  // what the run still sent arrived before its end
});
"""
OWN = """
return [...document.images].some(one => one.src.startsWith('blob:') && one.checkVisibility());
"""
SWITCH = """
await app.extensionManager.command.execute(`Workspace.${arguments[0]}OpenedWorkflow`);
"""
LEFT = """
return document.querySelectorAll('img.cogvideox-fun-preview').length;
"""


@pytest.mark.long
def test_a_moving_picture_while_sampling(front):
    """On the node of the open graph that the sampler is in, until it is done."""
    front.open_template(TEXT)
    assert front.app(LEFT) == 0
    front.app(FOLLOW, WIDGET)
    front.run()
    first = front.wait_until(lambda: front.app(SHOWN, WIDGET), 120, "no moving picture is shown")
    assert (first["frames"], first["natural"]) in ((5, [16, 16]), (17, [128, 128])), "coarse, then sharp"
    assert first["width"] > 50 and first["height"] > 50
    assert len(first["nodes"]) == 1
    assert front.wait_for_end(180)["end"] == "success"
    followed, own = front.app("return [window.followed, window.own]")
    assert followed and all(followed), "every picture that arrives is shown"
    assert len(own) >= 20 and not any(own), "ComfyUI's own preview is shown, too"
    front.wait_until(lambda: front.app(LEFT) == 0, 10, "the picture stays after the run")


@pytest.mark.long
def test_the_picture_of_another_workflow_is_not_shown(front):
    """Of two runs that were queued from it, also that which begins after another workflow was opened.

    When the first workflow is opened again, the picture is shown again.
    """
    front.open_template(TEXT)
    ids = [front.app("return (app.graph.rootGraph ?? app.graph).id")]
    front.app(TWICE)
    front.wait_until(lambda: front.app(LEFT), 120, "no moving picture is shown")
    front.open_template(OTHER)
    ids.append(front.app("return (app.graph.rootGraph ?? app.graph).id"))
    assert ids[0] != ids[1]
    front.app(FOLLOW, WIDGET)
    front.app(ENDS)
    for number in (1, 2):
        front.wait_for("window.followed.length > 2", 120)
        assert not any(front.app("return window.followed"))
        if number == 1:
            front.app(SWITCH, "Previous")
            front.wait_until(lambda: front.app(SHOWN, WIDGET), 60, "no moving picture is shown after coming back")
            front.app(SWITCH, "Next")
        front.app(STOP)
        front.wait_for(f"window.ends == {number}", 60)


def test_an_app_has_the_picture_of_comfyui(front):
    """The canvas with ours is hidden."""
    front.open_template(TEXT)
    if not front.is_shown("app"):
        pytest.skip("this front end has no App mode (1.49 and newer have)")
    front.app(MANY)
    front.click("app")
    front.close_dialogs()  # its tour
    assert not front.app(OWN)
    front.app(ENDS)
    front.click("app_run")
    front.wait_until(lambda: front.app(OWN), 120, "the app shows no preview")
    front.app(STOP)
    front.wait_for("window.ends > 0", 60)  # another test of this window may count, too
    front.click("graph")
