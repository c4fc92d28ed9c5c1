"""The moving preview on the node that samples, in place of ComfyUI's own."""

TEXT = "CogVideoX-Fun Text to Video (nano)"
WIDGET = "$$cogvideox-fun-preview"
SHOWN = """
const picture = [...document.querySelectorAll('img.cogvideox-fun-preview')].find(one => one.checkVisibility());
if (!picture?.complete || !picture.naturalWidth) return null;
const data = await (await fetch(picture.src)).arrayBuffer();
const decoder = new ImageDecoder({type: 'image/webp', data});
await decoder.tracks.ready;
const box = picture.getBoundingClientRect();
const nodes = app.graph.nodes.filter(node => node.widgets?.some(widget => widget.name == arguments[0]));
return {
    frames: decoder.tracks.selectedTrack.frameCount, source: picture.src.length + picture.src.slice(-200),
    width: box.width, height: box.height, natural: [picture.naturalWidth, picture.naturalHeight],
    nodes: nodes.map(node => node.id), own: nodes.some(node => node.imgs?.length),
};
"""
LEFT = """
return document.querySelectorAll('img.cogvideox-fun-preview').length;
"""


def test_a_moving_picture_while_sampling(front):
    """On the node of the open graph that the sampler is in, until it is done."""
    front.open_template(TEXT)
    assert front.app(LEFT) == 0
    front.run()
    first = front.wait_until(lambda: front.app(SHOWN, WIDGET), 120, "no moving picture is shown")
    assert first["frames"] >= 5 and first["natural"] in ([16, 16], [128, 128])
    assert first["width"] > 50 and first["height"] > 50
    assert len(first["nodes"]) == 1 and not first["own"], "ComfyUI's own preview is shown, too"

    def another() -> dict | None:
        shown = front.app(SHOWN, WIDGET)
        return shown if shown and shown["source"] != first["source"] else None

    later = front.wait_until(another, 60, "the picture does not change")
    assert later["nodes"] == first["nodes"] and not later["own"]
    assert front.wait_for_end(180)["end"] == "success"
    front.wait_until(lambda: front.app(LEFT) == 0, 10, "the picture stays after the run")
