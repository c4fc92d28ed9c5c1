"""What a new seed and a new prompt cost: nothing is encoded twice."""

import json

import pytest
from cogvideox_fun.demo import comfy
from graph import read_workflow
from test_workflows import shrink

ENCODERS = {"CogVideoXFunVAEEncode", "CogVideoXFunModelLoader", "CogVideoXFunStartEndImage"}


def executed(lab, workflow: dict) -> list[str]:
    """The classes of the nodes that a run did not take from the host's cache, by the host's own message."""
    messages = dict(lab.run(workflow)["status"]["messages"])
    cached = set(messages["execution_cached"]["nodes"])
    return [node["class_type"] for key, node in workflow.items() if key not in cached]


@pytest.mark.parametrize("name", ["start_end_image_to_video", "inpaint_region", "video_to_video"])
def test_nothing_is_encoded_twice(lab, name):
    """A new seed encodes nothing and runs no T5; a new prompt runs T5 once and encodes no video."""
    workflow = read_workflow(name)
    shrink(workflow)
    comfy.set_inputs(workflow, "CogVideoXFunSampler", seed=11)
    lab.run(workflow)
    comfy.set_inputs(workflow, "CogVideoXFunSampler", seed=12)
    after = executed(lab, workflow)
    assert "CogVideoXFunSampler" in after and not {*ENCODERS, "CLIPTextEncode"} & set(after), after
    first = next(node for node in workflow.values() if node["class_type"] == "CLIPTextEncode")
    first["inputs"]["text"] = json.dumps(first["inputs"]["text"]) + " in the evening"
    after = executed(lab, workflow)
    assert after.count("CLIPTextEncode") == 1 and not ENCODERS & set(after), after
