"""The source of the templates against the nodes of the running ComfyUI."""

import pytest
import torch
from graph import Failed
from old_workflows.kinds import KINDS
from templates.kinds import SAM3, WIDGET_TYPES

ONLY_IN_THE_PAGE = {"MarkdownNote"}
NEWER = {"CreateVideo": {"bit_depth"}, "SaveVideo": {"codec"}}  # inputs that not all versions of ComfyUI have


@pytest.mark.parametrize("name", sorted(KINDS.keys() - ONLY_IN_THE_PAGE))
def test_a_kind_of_node_is_that_of_comfyui(lab, name):
    """Its sockets, and its widgets in the order in which their values are saved; its outputs."""
    found = lab.server.get(f"/object_info/{name}")
    if not found and name in SAM3:
        pytest.skip("this ComfyUI has no SAM3 (0.33 and newer have)")
    (info,) = found.values()
    sockets, widgets = {}, {}
    for group in ("required", "optional"):
        for key, (kind, *_) in info["input"].get(group, {}).items():
            if isinstance(kind, list) or kind.split("_")[-1] in WIDGET_TYPES or kind == "COMFY_DYNAMICCOMBO_V3":
                widgets[key] = "COMBO" if isinstance(kind, list) or kind == "COMFY_DYNAMICCOMBO_V3" else kind
            else:
                sockets[key if group == "required" else f"{key}?"] = kind
    known = KINDS[name]
    newer = NEWER.get(name, set())
    assert {key: kind for key, kind in sockets.items() if key not in newer} == dict(known.inputs)
    expected = {key: kind for key, (kind, _) in known.widgets.items() if key not in newer}
    assert [(key, kind) for key, kind in widgets.items() if key not in newer] == list(expected.items())
    outputs = dict(zip(info["output_name"], info["output"], strict=True))
    assert dict(list(outputs.items())[: len(known.outputs)]) == dict(known.outputs), "newer ones may have more"


def test_a_builder_takes_the_last_frames_of_a_clip(lab):
    graph = lab.graph()
    images = graph.tensor("image", torch.rand(5, 32, 48, 3))
    built = [
        graph.fun("StartEndImage", width=48, height=32, length=9, fit="crop", start_image=images, start_frames=count)
        for count in (0, 2, 7)
    ]
    every, last, more = graph.get(*built)
    assert torch.equal(last[:2], every[3:5])
    assert torch.equal(more, every), "it has no more"


def test_frames_that_can_not_be_counted_are_named(lab):
    """ComfyUI does not check the range of a linked value."""
    for node, name, value, inputs in (
        ("StartEndImage", "start_frames", -3, {"width": 48, "height": 32, "length": 9, "fit": "crop"}),
        ("JoinClips", "overlap", 0, {}),
    ):
        graph = lab.graph()
        images = graph.tensor("image", torch.rand(5, 32, 48, 3))
        given = {"start_image": images} if node == "StartEndImage" else {"clip": images, "continuation": images}
        linked = graph.node("PrimitiveInt", value=value)
        with pytest.raises(Failed, match=f"{name} is {value}, expected"):
            graph.get(graph.fun(node, **inputs, **given, **{name: linked}))
