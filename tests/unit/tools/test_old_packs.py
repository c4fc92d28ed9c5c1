"""Workflows of VideoX-Fun and of the wrapper, node by node, also inside subgraphs."""

import pytest
from cogvideox_fun.sampling.schedule import NoiseSchedule
from old_workflow_graphs import converted, graphs, in_subgraph, load, values
from old_workflows import facts
from old_workflows.convert import convert
from ui_graph import UIGraph

CHECKED = ("CogVideoXFunSampler", "CogVideoXFunEmptyLatent", "CogVideoXFunVAEEncode", "CogVideoXFunModelLoader")


def only_values(node: tuple[str, dict]) -> tuple:
    """The type and the values of a node, without links and what stands in their place."""
    given = {k: v for k, v in node[1].items() if not isinstance(v, list) and not k.endswith(" after")}
    return node[0], sorted((k, v) for k, v in given.items() if k not in ("width", "height"))


def as_api(data: dict) -> dict:
    """A workflow in API form, as the front end would export it."""
    tables = facts.WRAPPER | facts.NATIVE
    graph, nodes = UIGraph(data), {}
    for node in data["nodes"]:
        inputs = {}
        for order in tables[node["type"]].orders() if node["type"] in tables else []:
            names = [one for widget in order for one in ([widget.name, ""] if widget.has_control else [widget.name])]
            if len(names) == len(node["widgets_values"] or []):
                inputs = dict(zip(names, node["widgets_values"], strict=True)) | inputs
        inputs.pop("", None)
        if node["type"] == "CogVideoImageEncode" and node["widgets_values"] == [16, True]:
            inputs = {"chunk_size": 16, "enable_tiling": True}  # another order has as many values
        for slot in node["inputs"]:
            if slot["link"] is not None:
                source = graph.source(node, slot["name"])
                inputs[slot["name"]] = [str(source[0]), source[1]]
        nodes[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return nodes


class TestVideoXFun:
    def test_images_to_video(self):
        graph, report = converted("videox_fun_images")
        sampler, loader, lora = graph.nodes[7], graph.nodes[1], graph.nodes[2]
        assert values(loader) == {"model": "CogVideoX-Fun-V1.1-2b-InP", "weight_dtype": "fp8_e4m3fn"}
        assert values(lora) == {"lora_name": "pai/first.safetensors", "strength": 0.6}
        expected = {
            "seed": 77,
            "seed after": "increment",
            "steps": 20,
            "cfg": 5.5,
            "sampler_name": "cogvideox_euler_a",
        }
        assert expected.items() <= values(sampler).items() and sampler["type"] == "CogVideoXFunSampler"
        assert graph.source(sampler, "model") == (2, 0) and graph.source(lora, "model") == (1, 0)
        conditioned = graph.one("CogVideoXFunInpaintConditioning")
        for slot, name in enumerate(("positive", "negative", "latent")):
            assert graph.source(sampler, name) == (conditioned["id"], slot)
        assert graph.source(conditioned, "positive") == (3, 0) and graph.source(conditioned, "negative") == (4, 0)
        assert [graph.nodes[key]["widgets_values"] for key in (3, 4)] == [["a lighthouse in a storm"], ["blurry"]]
        assert graph.nodes[3]["title"] == "Positive" and graph.source(graph.nodes[3], "clip") == (1, 1)
        builder = graph.one("CogVideoXFunStartEndImage")
        assert (graph.source(builder, "start_image"), graph.source(builder, "end_image")) == ((5, 0), (6, 0))
        size = graph.before(builder, "width")
        assert values(size)["base_resolution"] == 768 and values(size)["length"] == 29
        assert values(builder)["fit"] == "stretch", "as VideoX-Fun does"
        encode = graph.before(conditioned, "masked_latent")
        assert graph.source(encode, "mask") == (builder["id"], 1) and graph.source(encode, "vae") == (1, 2)
        decode = graph.before(graph.nodes[8], "images")
        assert decode["type"] == "CogVideoXFunVAEDecode" and graph.source(decode, "latent") == (7, 0)
        assert report.figure() == "8 of 8 nodes keep all their values (5 converted, 3 unchanged)"

    def test_a_muted_picture_and_a_muted_control_video_do_not_count(self):
        data = load("videox_fun_images")
        next(node for node in data["nodes"] if node["id"] == 5)["mode"] = 2
        graph = UIGraph(convert(data)[0])
        assert graph.source(graph.one("CogVideoXFunResolution"), "image") == (6, 0), "the end image's proportions"
        data = load("videox_fun_first_names")
        next(node for node in data["nodes"] if node["id"] == 8)["mode"] = 2
        graph = UIGraph(convert(data)[0])
        assert graph.before(graph.nodes[9], "latent")["type"] == "CogVideoXFunEmptyLatent"

    @pytest.mark.parametrize("name", ["videox_fun_images", "videox_fun_first_names"])
    def test_loaders_that_comfyui_has_swapped(self, name):
        """The graph is the one that the old loaders give, but for the memory mode of the loader."""
        data, swapped = load(name), load(name)
        for one in (data, swapped):  # a reroute in the model's wire
            slot = {"name": "FunModels", "type": "FunModels"}
            first = next(link for link in one["links"] if link[5] == "FunModels")
            (target,) = [node for node in one["nodes"] if node["id"] == first[3]]
            target["inputs"][first[4]]["link"] = 99
            one["links"].append([99, 50, 0, *first[3:]])
            first[3:5] = [50, 0]
            reroute = {"id": 50, "type": "Reroute", "pos": [0, -900], "size": [80, 30], "mode": 0}
            ends = {"inputs": [slot | {"link": first[0]}], "outputs": [slot | {"links": [99]}]}
            one["nodes"].append(reroute | ends)
        for node in swapped["nodes"]:
            saved = node.get("widgets_values")
            if "Model" in node["type"] and node["type"].startswith("LoadCogVideo"):
                node |= {"type": "CogVideoXFunModelLoader", "widgets_values": [saved[0], "fp8_e4m3fn"]}
                others = [{"name": key, "type": key, "links": []} for key in ("CLIP", "VAE")]
                node["outputs"] = [node["outputs"][0] | {"name": "MODEL", "type": "MODEL"}, *others]
            elif node["type"].startswith("LoadCogVideo"):
                node |= {"type": "CogVideoXFunLoraLoader", "widgets_values": saved[:2]}
                node["inputs"] = [node["inputs"][0] | {"name": "model", "type": "MODEL"}]
                node["outputs"] = [node["outputs"][0] | {"name": "model", "type": "MODEL"}]
        expected, found = (UIGraph(convert(one)[0]) for one in (data, swapped))
        found.check()
        assert {key: node["type"] for key, node in found.nodes.items()} == {
            key: node["type"] for key, node in expected.nodes.items()
        }
        for key, node in expected.nodes.items():
            for slot in node["inputs"]:
                assert found.source(found.nodes[key], slot["name"]) == expected.source(node, slot["name"])
            if node["type"] not in ("CogVideoXFunModelLoader", "MarkdownNote"):
                assert found.nodes[key].get("widgets_values") == node.get("widgets_values")

    @pytest.mark.parametrize("steps, strength, run", [(10, 0.75, 7), (50, 0.58, 28), (20, 0.33, 6), (13, 0.08, 1)])
    def test_a_strength_runs_the_end_of_the_same_schedule(self, steps, strength, run):
        """VideoX-Fun's `int(steps * strength)` timesteps, also where that is rounded down."""
        data = load("videox_fun_first_names")
        (old,) = (node for node in data["nodes"] if node["id"] == 6)
        old["widgets_values"][4], old["widgets_values"][6] = steps, strength
        got = values(UIGraph(convert(data)[0]).nodes[6])
        schedule = NoiseSchedule()
        timesteps, total = schedule.run_timesteps(got["steps"], "trailing", got["denoise"])
        assert (got["steps"], total) == (run, steps) and timesteps == schedule.timesteps(steps, "trailing")[-run:]

    @pytest.mark.parametrize("steps, strength", [(10, 0.0), (1, 0.5), (0, 0.5)])
    def test_a_strength_that_leaves_no_step_returns_the_clip(self, steps, strength):
        data = load("videox_fun_first_names")
        (old,) = (node for node in data["nodes"] if node["id"] == 6)
        old["widgets_values"][4], old["widgets_values"][6] = steps, strength
        got = values(UIGraph(convert(data)[0]).nodes[6])
        assert (got["steps"], got["denoise"]) == (steps, 0.0)

    def test_first_names_videos_and_control(self):
        graph, _ = converted("videox_fun_first_names")
        text, video, control = graph.nodes[5], graph.nodes[6], graph.nodes[9]
        assert values(graph.before(text, "latent")) == {"width": 672, "height": 384, "length": 1, "batch_size": 1}
        assert values(video)["steps"] == 7 and values(video)["denoise"] == 0.7, "10 steps at strength 0.7"
        encode = graph.before(video, "latent")
        assert values(encode)["sample_posterior"] is True
        assert graph.before(graph.before(encode, "video"), "image")["type"] == "ImageFromBatch"
        assert graph.source(text, "positive") == (3, 0), "reroutes stay"
        assert graph.nodes[3]["outputs"][0]["type"] == "CONDITIONING"
        assert values(graph.nodes[8]) == {"low_threshold": 0.2, "high_threshold": 0.6}, "51 and 153 of 255"
        conditioned = graph.before(control, "latent")
        assert conditioned["type"] == "CogVideoXFunControlConditioning" and values(control)["denoise"] == 1.0
        assert graph.source(graph.before(conditioned, "positive"), "clip") == (7, 1), "each model has its own CLIP"

    def test_other_models_of_videox_fun_keep_their_nodes(self):
        """They share prompts and preprocessors with CogVideoX-Fun."""
        old = load("videox_fun_text_api")
        prompts = {"prompt": ["5", 0], "negative_prompt": ["6", 0]}
        wan = {"9": {"class_type": "WanT2VSampler", "inputs": {"funmodels": ["10", 0], **prompts}}}
        wan |= {"10": {"class_type": "LoadWanModel", "inputs": {}}}
        only = {key: old[key] for key in ("5", "6")} | wan
        assert convert(only)[0] == only
        both, _ = convert(old | wan)
        assert both["9"] == wan["9"] and both["5"] == old["5"]
        text = both[both["7"]["inputs"]["positive"][0]]
        assert text["inputs"] == {"text": "a red kite over the dunes", "clip": ["4", 1]}

    def test_the_api_format(self):
        new, report = convert(load("videox_fun_text_api"))
        assert {node["class_type"] for node in new.values()} == {
            *("CogVideoXFunModelLoader", "CLIPTextEncode", "CogVideoXFunEmptyLatent", "CogVideoXFunSampler"),
            *("CogVideoXFunVAEDecode", "SaveAnimatedWEBP"),
        }
        sampler = new["7"]["inputs"]
        assert sampler["seed"] == 9 and sampler["steps"] == 2 and sampler["spacing"] == "auto"
        assert sampler["positive"] == ["5", 0] and new["5"]["inputs"] == {
            "text": "a red kite over the dunes",
            "clip": ["4", 1],
        }
        assert new[sampler["latent"][0]]["inputs"]["length"] == 5
        decode = new[new["8"]["inputs"]["images"][0]]
        assert decode["inputs"]["latent"] == ["7", 0] and decode["inputs"]["vae"] == ["4", 2]
        assert report.figure() == "5 of 5 nodes keep all their values (4 converted, 1 unchanged)"


class TestWrapper:
    def test_images_to_video(self):
        graph, report = converted("wrapper_images")
        sampler, loader = graph.nodes[18], graph.nodes[3]
        assert values(loader) == {"model": "CogVideoX-Fun-V1.1-5b-InP", "weight_dtype": "fp8_e4m3fn"}
        chain = [5, 4, 2, 1, 3]  # SetNode, torch.compile, second LoRA, first LoRA, loader
        for after, before in zip(chain, chain[1:], strict=False):
            name = "MODEL" if after == 5 else "model"
            assert graph.source(graph.nodes[after], name) == (before, 0)
        assert [graph.nodes[key]["widgets_values"] for key in (1, 2, 4)] == [
            ["one.safetensors", 0.5],
            ["two.safetensors", -1],
            ["cudagraphs"],
        ]
        windows = graph.before(sampler, "model")
        assert windows["id"] == 14 and graph.source(windows, "model") == (6, 0)
        assert windows["widgets_values"] == [45, 8, "looped_uniform", "pyramid"], "48 frames are 45, which is 4n + 1"
        builder = graph.one("CogVideoXFunStartEndImage")
        assert graph.source(builder, "length") == (12, 0) and graph.source(builder, "end_image") == (11, 0)
        assert graph.before(builder, "width")["type"] == "GetImageSize"
        encode = graph.nodes[13]
        assert values(encode)["noise_augmentation"] == 0.03 and values(encode)["tile_size"] == 256
        assert graph.source(encode, "vae") == (3, 2), "the VAE is the third output here"
        assert values(graph.nodes[19]) == {"tile_size": 240, "overlap": 56}, "a quarter of 240, in steps of 8"
        assert graph.source(graph.nodes[8], "text") == (9, 0) and graph.source(graph.nodes[10], "clip") == (7, 0)
        notes = {key: graph.nodes[key]["widgets_values"][0] for key in (15, 16)}
        assert all(graph.nodes[key]["type"] == "MarkdownNote" for key in notes)
        assert "DownloadAndLoadToraModel" in notes[15] and "kijai/CogVideoX-5b-Tora" in notes[15]
        assert "`width` 720" in notes[16]
        assert graph.nodes[17]["mode"] == 2, "its picture came from Tora"
        assert [group["title"] for group in graph.data["groups"]][0] == "Models"
        assert report.figure().startswith("16 of 20 nodes keep")

    def test_tasks(self):
        graph, report = converted("wrapper_tasks")
        text, video, control, image = (graph.nodes[key] for key in (8, 12, 15, 19))
        assert values(graph.nodes[7]) == {"width": 640, "height": 352, "length": 21, "batch_size": 1}
        assert values(text)["sampler_name"] == "uni_pc" and graph.source(text, "positive") == (6, 0)
        assert values(graph.nodes[6])["conditioning_to_strength"] == 0.75
        assert values(video)["steps"] == 20 and graph.source(video, "latent") == (11, 0)
        assert values(graph.nodes[11])["tile_size"] == 256, "the older order: chunk_size, enable_tiling"
        conditioned = graph.before(control, "positive")
        assert conditioned["type"] == "CogVideoXFunControlConditioning"
        assert conditioned["widgets_values"] == [0.8, 0.1, 0.9]
        conditioned = graph.before(image, "positive")
        assert conditioned["type"] == "CogVideoXFunImageConditioning"
        empty = graph.before(conditioned, "latent")
        assert values(empty)["length"] == 17 and graph.before(empty, "width")["type"] == "GetImageSize"
        assert graph.nodes[10]["type"] == "ImageScale"
        assert "torchao_int8dq" in str(report.lines()) and "CogVideoXDPMScheduler" in str(report.lines())

    def test_samplers_of_one_empty_latent_keep_their_lengths(self):
        data = load("wrapper_tasks")
        nodes = {node["id"]: node for node in data["nodes"]}
        for last, (key, length) in enumerate(((8, 17), (12, 49), (15, 49), (19, 17)), 100):
            nodes[key]["widgets_values"][0] = length
            nodes[key]["inputs"][-1]["link"] = nodes[key]["inputs"][4]["link"] = None
            nodes[key]["inputs"][3]["link"] = last
            data["links"] = [one for one in data["links"] if one[3] != key or one[4] in (1, 2)]
            first = 5 + 100 * last
            data["links"] += [[last, 7, 0, key, 3, "LATENT"], [first, 1, 0, key, 0, "COGVIDEOMODEL"]]
            nodes[key]["inputs"][0]["link"] = first
        graph = UIGraph(convert(data)[0])
        latents = {key: graph.before(graph.nodes[key], "latent") for key in (8, 12, 15, 19)}
        lengths = {key: values(latent)["length"] for key, latent in latents.items()}
        assert lengths == {8: 17, 12: 49, 15: 49, 19: 17}
        assert {values(latent)["width"] for latent in latents.values()} == {640}
        assert len(graph.of_kind("CogVideoXFunEmptyLatent")) == 2, "those of one length share a latent"
        assert graph.source(latents[12], "model") == (1, 0)

    def test_muted_options_stay_off_and_do_not_cut_the_models_wire(self):
        """The wrapper's loader and sampler run without an option whose node is muted."""
        data = load("wrapper_images")
        for node in data["nodes"]:
            node["mode"] = 2 if node["id"] in (2, 4, 13, 14) else 0  # LoRA, torch.compile, encoder, context windows
        new, report = convert(data)
        graph = UIGraph(new)
        assert {key: graph.nodes[key]["mode"] for key in (2, 4, 14, 13)} == {2: 4, 4: 4, 14: 4, 13: 2}
        assert graph.nodes[1]["mode"] == 4, "the second LoRA, which is muted, would have passed on this one"
        sampler = graph.nodes[18]
        assert graph.source(sampler, "model") == (14, 0) and graph.source(graph.nodes[14], "model") == (6, 0)
        assert graph.source(sampler, "positive") == (8, 0), "there is no conditioning on images"
        assert graph.before(sampler, "latent")["type"] == "CogVideoXFunEmptyLatent"
        remarks = " ".join(report.entries["", 18].remarks)
        assert "`image_cond_latents` came from a muted node" in remarks

    def test_what_a_muted_option_becomes_at_a_second_loader_and_sampler(self):
        """It stands beside them, and does not take their mode."""
        data = load("wrapper_images")
        for node in list(data["nodes"]):
            node["mode"] = 2 if node["id"] in (2, 14) else 0
            if node["id"] in (3, 18):
                data["nodes"].append(node | {"id": node["id"] + 100})
        last = 100
        for link in list(data["links"]):
            if link[3] in (3, 18):
                last += 1
                data["links"].append([last, *link[1:3], link[3] + 100, *link[4:]])
        for node in data["nodes"][-2:]:
            own = {link[4]: link[0] for link in data["links"] if link[3] == node["id"]}
            node["inputs"] = [slot | {"link": own.get(i)} for i, slot in enumerate(node["inputs"])]
            node["outputs"] = [slot | {"links": []} for slot in node["outputs"]]
        graph = UIGraph(convert(data)[0])
        for kind, count in (("CogVideoXFunLoraLoader", 4), ("CogVideoXFunContextWindows", 2)):
            assert [node["mode"] for node in graph.of_kind(kind)] == [4] * count
        assert [node["mode"] for node in graph.of_kind("TorchCompileModel")] == [0, 0]

    def test_the_api_format_gives_the_same_nodes(self):
        """The same graph with names instead of places."""
        graph, _ = converted("wrapper_tasks")
        new, report = convert(as_api(load("wrapper_tasks")))
        expected = [(n["type"], values(n)) for n in graph.nodes.values() if n["type"] in CHECKED]
        found = [(n["class_type"], n["inputs"]) for n in new.values() if n["class_type"] in CHECKED]
        assert sorted(map(str, map(only_values, expected))) == sorted(map(str, map(only_values, found)))
        assert report.counts()["none"] == 0 and new["8"]["inputs"]["latent"] == ["7", 0]

    def test_an_unknown_version_is_said_with_value_expectation_and_remedy(self):
        graph, report = converted("wrapper_unknown")
        text, steps, first = (" ".join(report.entries["", key].problems) for key in (3, 5, 6))
        assert "has 4 values (['a hare', 1, True, 'extra']), expected 3 (prompt, strength, force_offload)" in text
        assert "set the values of the new node by hand" in text
        assert "`steps` of CogVideoSampler is 'fifty', expected a whole number" in steps
        assert values(graph.nodes[5])["steps"] == 50 and values(graph.nodes[5])["seed"] == 5
        assert graph.nodes[6]["type"] == "MarkdownNote" and "November 19, 2024" in first
        assert graph.nodes[9]["type"] == "MarkdownNote", "it has a `pipeline`, too"
        summary = [node for node in graph.of_kind("MarkdownNote") if node.get("title") == "Read me"]
        assert len(summary) == 1 and "'fifty'" in summary[0]["widgets_values"][0]


class TestSubgraphs:
    def test_the_note_outside_tells_of_a_problem_inside(self):
        data = in_subgraph(load("wrapper_unknown"), {}, {})
        outer, inner = graphs(convert(data)[0])
        (note,) = outer.of_kind("MarkdownNote")
        assert note["title"] == "Read me"
        assert "CogVideoSampler (5 in inside): `steps` of CogVideoSampler is 'fifty'" in note["widgets_values"][0]
        assert not [node for node in inner.of_kind("MarkdownNote") if node.get("title") == "Read me"]

    def test_promoted_widgets_and_types_follow_the_new_nodes(self):
        inputs = {"model": ("COGVIDEOMODEL", [(15, 0), (19, 0)]), "text": ("STRING", []), "pipe": ("FunModels", [])}
        outputs = {"loaded": ("COGVIDEOMODEL", 1, 0), "images": ("IMAGE", 20, 0)}
        data = in_subgraph(load("wrapper_tasks"), inputs, outputs)
        pairs = [["13", "precision"], ["8", "num_frames"], ["12", "scheduler"], ["4", "prompt"], ["4", "strength"]]
        pairs += [["10", "base_resolution"], ["-1", "text"], ["9", "video"]]
        data["nodes"][0] |= {"properties": {"proxyWidgets": pairs}, "widgets_values": list(range(8))}
        data["nodes"][0]["outputs"][0]["links"] = [1]
        slot = {"name": "", "type": "COGVIDEOMODEL"}
        reroute = {"id": 2, "type": "Reroute", "pos": [400, 0], "size": [80, 30], "mode": 0}
        data["nodes"].append(reroute | {"inputs": [slot | {"link": 1}], "outputs": [slot | {"links": []}]})
        data["links"] = [[1, 1, 0, 2, 0, "COGVIDEOMODEL"]]
        new, report = convert(data)
        outer, inner = graphs(new)
        (shown,) = [node for node in outer.nodes.values() if node["type"] == "inside-id"]
        for side in ("inputs", "outputs"):
            assert [one["type"] for one in inner.data[side]] == [one["type"] for one in shown[side]]
        assert [one["type"] for one in inner.data["inputs"]] == ["MODEL", "STRING", "*"]
        assert [one["type"] for one in inner.data["outputs"]] == ["MODEL", "IMAGE"]
        assert outer.nodes[2]["outputs"][0]["type"] == "MODEL" == outer.links[0]["type"]
        resolution = str(inner.one("CogVideoXFunResolution")["id"])
        assert shown["properties"]["proxyWidgets"] == [
            ["13", "weight_dtype"],
            ["12", "sampler_name"],
            ["4", "text"],
            [resolution, "base_resolution"],
            ["-1", "text"],
            ["9", "video"],
        ]
        assert shown["widgets_values"] == [0, 2, 3, 5, 6, 7]
        problems = " ".join(report.entries["", 1].problems)
        assert "`num_frames` of the node 8 inside" in problems and "`strength` of the node 4 inside" in problems
        assert all(text in outer.one("MarkdownNote")["widgets_values"][0] for text in report.entries["", 1].problems)
        for graph in (outer, inner):
            graph.check()

    def test_options_from_outside_a_subgraph_are_named(self):
        inputs = {"lora": ("COGLORA", [(3, 1)]), "settings": ("COMPILEARGS", [(3, 2)])}
        data = in_subgraph(load("wrapper_images"), inputs | {"windows": ("COGCONTEXT", [(18, 5)])}, {})
        _, report = convert(data)
        found = [" ".join(report.entries["inside", key].problems) for key in (3, 18)]
        assert "`lora` comes from" in found[0] and "`compile_args` comes from" in found[0]
        assert "`context_options` comes from" in found[1]

    def test_an_output_of_a_node_without_a_counterpart(self):
        outputs = {"tracks": ("IMAGE", 16, 1), "tora": ("TORAFEATURES", 16, 0)}
        new, report = convert(in_subgraph(load("wrapper_images"), {}, outputs))
        outer, inner = graphs(new)
        inner.check()
        assert [one["type"] for one in inner.data["outputs"]] == ["IMAGE", "*"]
        assert "`tracks` came from a node inside" in " ".join(report.entries["", 1].problems)

    def test_subgraphs_of_one_name_are_told_apart(self):
        data = in_subgraph(load("wrapper_unknown"), {}, {})
        other = in_subgraph(load("videox_fun_images"), {}, {})
        data["definitions"]["subgraphs"] += other["definitions"]["subgraphs"]
        _, report = convert(data)
        assert len(report.entries) == sum(len(graph.nodes) for graph in graphs(data))
