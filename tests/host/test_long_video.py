"""Long Video in ComfyUI: what it makes, what runs again after a change or an interruption, and what it refuses."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from cogvideox_fun.tools import comfyui_server as comfy
from graph import ENCODE, Failed, Lab

SIZE = {"width": 80, "height": 48}
LENGTH, ROUND, OVERLAP, STEPS = 29, 13, 5, 2  # three rounds, which add 13, 8 and 8 frames
LINES = "a red ball moves right", "a red ball stands still", "a red ball moves left"
SEED = 7
BLOCK = "model.diffusion_model.transformer_blocks.0"  # is called once a step at cfg 1
FRAME = SIZE["width"] * SIZE["height"] * 3 * 4  # bytes


def picture(seed: int, frames: int = 1) -> torch.Tensor:
    return torch.rand(frames, SIZE["height"], SIZE["width"], 3, generator=torch.Generator().manual_seed(seed))


class Case:
    """A Long Video whose start image no earlier run has seen. The transformer's calls are counted."""

    def __init__(self, lab, seed: int, frames: int = 1, pause: int = 0):
        """``pause``: the call at which the transformer waits for an interruption; 0 = none."""
        self.lab, self.pause = lab, pause
        self.calls = Path(lab.path(".txt"))
        self.calls.write_text("")
        self.start = picture(seed, frames)
        self.files = {}

    def tensor(self, graph, name: str, value: torch.Tensor):
        """The same node in every graph, so that ComfyUI knows it again."""
        if name not in self.files:
            self.files[name] = graph.tensor("Image", value), graph.workflow[str(len(graph.workflow))]
            return self.files[name][0]
        return graph.node("ProbeTensor", **self.files[name][1]["inputs"])

    def parts(self, model: str = "tiny-2b"):
        """A graph, and its MODEL, CLIP, VAE and start image."""
        graph = self.lab.graph()
        loaded = graph.loader(model)
        counted = graph.node("ProbePause", value=loaded, module=BLOCK, call=self.pause, path=str(self.calls))
        return graph, counted, loaded[1], loaded[2], self.tensor(graph, "start", self.start)

    def graph(self, end: torch.Tensor | None = None, model: str = "tiny-2b", **options):
        """A graph and its Long Video."""
        graph, model, clip, vae, start = self.parts(model)
        given = {**SIZE, "length": LENGTH, "round_length": ROUND, "overlap": OVERLAP, "prompt": "\n".join(LINES)}
        given |= {"negative_prompt": "blurry", "seed": SEED, "steps": STEPS, "cfg": 1.0, "match_colors": 0.0}
        given |= {"model": model, "clip": clip, "vae": vae, "start_image": start, **options}
        video = graph.with_defaults("CogVideoXFunLongVideo", **given)  # its id is the same with an end image
        if end is not None:
            graph.workflow[video.key]["inputs"]["end_image"] = graph.tensor("Image", end)[0]
        return graph, video

    def count(self) -> int:
        """Calls of the transformer until now."""
        return len(self.calls.read_text().splitlines())

    def run(self, **options) -> tuple[torch.Tensor, int]:
        """The video, and how many rounds were sampled for it."""
        before = self.count()
        graph, video = self.graph(**options)
        (made,) = graph.get(video)
        calls = self.count() - before
        assert calls % STEPS == 0
        return made, calls // STEPS


def by_hand(case: Case, end: torch.Tensor | None = None, model: str = "tiny-2b") -> torch.Tensor:
    """The same three rounds as a graph of single nodes."""
    graph, model, clip, vae, start = case.parts(model)
    negative = graph.node("CLIPTextEncode", clip=clip, text="blurry")
    joined = None
    for i, line in enumerate(LINES):
        positive = graph.node("CLIPTextEncode", clip=clip, text=line)
        images = {"start_image": start, "start_frames": OVERLAP}
        if end is not None and i == 2:
            images["end_image"] = graph.tensor("Image", end)
        built = graph.fun("StartEndImage", **SIZE, length=ROUND, fit="crop", **images)
        options = {**ENCODE, "noise_augmentation": -1.0, "noise_seed": SEED + i + 2**31}
        latent = graph.fun("VAEEncode", vae=vae, video=built, mask=built[1], model=model, **options)
        small = graph.fun("MaskResize3D", mask=built[1], latent=latent, soft=False)
        given = {"positive": positive, "negative": negative, "masked_latent": latent, "mask": small}
        known = graph.fun("InpaintConditioning", **given)
        sampled = graph.sampler(model, known, known[1], known[2], seed=SEED + i, steps=STEPS, cfg=1.0)
        start = graph.fun("VAEDecode", vae=vae, latent=sampled, tile_size=0, overlap=64)
        joined = start if i == 0 else graph.fun("JoinClips", clip=joined, continuation=start, overlap=OVERLAP)
    return graph.get(joined)[0]


def test_it_is_the_chain_of_nodes(lab):
    """Each line of the prompt for its round, and the seeds of later rounds one higher each.

    The model is one whose start image gets noise, which is not drawn from the sampler's seed.
    """
    models = lab.base / "models" / "CogVideoX_Fun"
    config = shutil.copytree(models / "tiny-2b", models / "tiny-noise") / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "add_noise_in_inpaint_model": True}))
    case = Case(lab, 1)
    try:
        made, rounds = case.run(model="tiny-noise")
        assert made.shape == (LENGTH, 48, 80, 3) and rounds == 3
        assert torch.equal(made, by_hand(case, model="tiny-noise"))
        assert not torch.equal(made, case.run()[0]), "the noise counts"
    finally:
        shutil.rmtree(models / "tiny-noise")


def test_only_the_rounds_after_a_change_run_again(lab):
    case = Case(lab, 2)
    made, _ = case.run()
    changed, rounds = case.run(prompt="\n".join([*LINES[:2], "a blue ball moves left"]))
    assert rounds == 1, "another last line is for the last round"
    begun = LENGTH - ROUND
    assert torch.equal(changed[:begun], made[:begun]) and not torch.equal(changed[begun:], made[begun:])
    assert case.run(prompt="\n".join([LINES[0], "a blue ball", LINES[2]]))[1] == 2


def test_a_longer_video_has_the_same_rounds(lab):
    """The rounds of the shorter one are not sampled again; with a length between, the last round shares more."""
    case = Case(lab, 3)
    made, _ = case.run()
    longer, rounds = case.run(length=LENGTH + 8)
    assert rounds == 1 and torch.equal(longer[: LENGTH - OVERLAP], made[: LENGTH - OVERLAP])
    between, rounds = case.run(length=LENGTH + 3)
    assert rounds == 1 and len(between) == LENGTH + 3
    assert torch.equal(between[: LENGTH - OVERLAP], made[: LENGTH - OVERLAP])


def test_an_interrupted_run_goes_on_where_it_stopped(lab):
    """In the first step of the last round: that round is sampled again, the two before are not."""
    call = 2 * STEPS + 1
    case = Case(lab, 4, pause=call)
    graph, video = case.graph()
    graph.node("ProbeSave", value=video, path=lab.path())
    prompt = lab.server.queue(graph.workflow)
    deadline = time.monotonic() + 60
    while case.count() < call:
        assert time.monotonic() < deadline, lab.server.tail()
        time.sleep(0.02)
    lab.server.post("/interrupt", {})
    history = lab.server.wait(prompt, 60)
    assert "execution_interrupted" in [kind for kind, _ in history["status"]["messages"]]
    made, rounds = case.run()
    assert rounds == 1
    assert torch.equal(made, Case(lab, 4).run()[0]), "as if it had run without a stop"


def test_only_the_last_round_sees_the_end_image(lab):
    case = Case(lab, 5)
    case.run()
    end = picture(50)
    made, rounds = case.run(end=end)
    assert rounds == 1
    assert case.run(end=picture(51))[1] == 1
    assert torch.equal(made, by_hand(case, end))


def test_one_prompt_for_all_rounds(lab):
    case = Case(lab, 6)
    first = case.run(prompt="a red ball")[0]
    assert case.run(prompt="\n a red ball \n\n")[1] == 0, "empty lines and spaces don't count"
    made, rounds = case.run(prompt="a red ball\na blue ball\n", line_per_round=False)
    assert rounds == 3, "both lines are read by the first round, too"
    assert not torch.equal(made[:ROUND], first[:ROUND])


def test_a_clip_is_continued_by_its_last_frames(lab):
    """So that a join with the clip is a video: the first frames are the clip's last, after the VAE."""
    case, cut = Case(lab, 7, frames=12), Case(lab, 7, frames=12)
    cut.start = case.start[-OVERLAP:]
    assert torch.equal(case.run(length=ROUND)[0], cut.run(length=ROUND)[0])


def test_colours_follow_the_first_round(lab):
    """Rounds of grey that drift apart are brought back by Add Round, and Join Rounds puts them together."""
    graph = lab.graph()
    grain = 0.02 * torch.randn(1, 48, 80, 3, generator=torch.Generator().manual_seed(0))
    clips = [(0.5 + 0.04 * i + grain).expand(ROUND, -1, -1, -1) for i in range(3)]
    results = {}
    for strength in (0.0, 1.0):
        rounds = {}
        for clip in clips:
            video = graph.tensor("Image", clip)
            added = graph.fun("AddRound", video=video, match_colors=strength, **rounds)
            rounds = {"rounds": added[0]}
        results[strength] = graph.fun("JoinRounds", **rounds, overlap=OVERLAP, length=LENGTH)
    plain, matched = graph.get(*results.values())
    assert len(plain) == len(matched) == LENGTH
    assert float(plain[-1].mean() - plain[0].mean()) == pytest.approx(0.08, abs=1e-3)
    assert float((matched[-1] - matched[0]).abs().max()) < 0.01


@pytest.mark.long
def test_memory_grows_with_the_frames(host, base, tmp_path_factory):
    """What ComfyUI keeps of two more rounds is the same after three rounds and after five.

    It is less than 8 frames for each frame of the video: the builder's video and mask, what was decoded, what was
    matched and the joined video, all with their overlaps, which are a third of these short rounds.
    """
    own = tmp_path_factory.mktemp("classic")
    (own / "models").symlink_to(base / "models")
    (own / "custom_nodes").mkdir()
    (own / "custom_nodes" / "probe").symlink_to(Path(__file__).parent / "probe", target_is_directory=True)
    with comfy.serve(host, own, "--cache-classic") as server:
        case, held = Case(Lab(server, own), 8), []
        for rounds in (3, 5, 7):
            length = ROUND + (rounds - 1) * (ROUND - OVERLAP)
            graph, video = case.graph(length=length, match_colors=1.0)
            graph.get(video)
            trim = graph.node("ProbeTrim", count=rounds)
            held.append(int(case.lab.run(graph.workflow)["outputs"][trim.key]["text"][0]))
    first, second = (b - a for a, b in zip(held, held[1:], strict=False))
    assert first > 0 and second <= 1.05 * first
    assert second <= 8 * 2 * (ROUND - OVERLAP) * FRAME


WRONG = {
    "overlap_of_a_round": ({"overlap": ROUND}, f"overlap is {ROUND} frames, expected 1 to {ROUND - 1}"),
    "no_overlap": ({"overlap": 0}, "Value 0 smaller than min of 1"),
    "short": ({"length": 12}, "length is 12 frames, shorter than one round of 13: set length to 13 or more, or"),
    "many": ({"length": 90_000}, "takes 11250 rounds, expected at most 200: set round_length higher, or"),
    "size": ({"width": 88}, "width is 88 pixels, expected a multiple of 16: use 80 or 96"),
    "colours": ({"match_colors": -1.0}, "Value -1.0 smaller than min of 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_numbers(lab, case):
    options, message = WRONG[case]
    with pytest.raises(Failed, match=message):
        Case(lab, 9).run(**options)


@pytest.mark.long
def test_as_many_rounds_as_it_allows(lab):
    """ComfyUI can follow their chain; the model is refused before the first one."""
    case, length = Case(lab, 9), ROUND + 199 * (ROUND - OVERLAP)
    with pytest.raises(Failed, match="expected an InP model"):
        case.run(model="tiny-2b-control", length=length)
    with pytest.raises(Failed, match="takes 201 rounds, expected at most 200"):
        case.run(length=length + 1)


def test_a_clip_that_is_shorter_than_the_overlap(lab):
    with pytest.raises(
        Failed, match="start_image has 3 frames, fewer than the overlap of 5: give a single image or 5"
    ):
        Case(lab, 9, frames=3).run()


@pytest.mark.parametrize("name", ["start_image", "end_image"])
def test_a_list_of_images(lab, name):
    """It is refused before the first round. What the message says to do makes a clip of them."""
    case = Case(lab, 11)

    def graph(batch_size: int):
        made, video = case.graph(overlap=2, length=24)
        images = made.node("RebatchImages", images=case.tensor(made, name, picture(60, 2)), batch_size=batch_size)
        made.workflow[video.key]["inputs"][name] = images[0]
        return made, video

    several, video = graph(1)
    with pytest.raises(Failed, match=f"{name} is a list of 2 images, expected one image or .* at batch_size 4096"):
        several.get(video)
    assert case.count() == 0, "before the first round"
    clip, video = graph(4096)
    assert len(clip.get(video)[0]) == 24 and case.count() == 2 * STEPS


@pytest.mark.parametrize("name", ["model", "clip", "vae"])
def test_a_list_of_models(lab, name):
    """One video is made, so it is refused before the first round."""
    case = Case(lab, 12)
    graph, video = case.graph()
    inputs = graph.workflow[video.key]["inputs"]
    inputs[name] = graph.node("ProbePair", first=inputs[name], second=inputs[name])[0]
    with pytest.raises(Failed, match=f"{name} is a list of 2 values, expected one: connect only one of them"):
        graph.get(video)
    assert case.count() == 0, "before the first round"


def test_a_list_of_seeds(lab):
    """ComfyUI runs the node once for each of them, and each video is as if its seed were written into the node."""
    case = Case(lab, 13)
    graph, video = case.graph()
    first, second = (graph.node("ProbeNumber", text=str(seed)) for seed in (SEED, SEED + 20))
    graph.workflow[video.key]["inputs"]["seed"] = graph.node("ProbePair", first=first, second=second)[0]
    (both,) = graph.get(graph.node("RebatchImages", images=video, batch_size=4096))
    assert torch.equal(both, torch.cat([case.run(seed=seed)[0] for seed in (SEED, SEED + 20)]))


def test_a_list_of_videos_for_one_round(lab):
    graph = lab.graph()
    videos = graph.node("RebatchImages", images=graph.tensor("Image", picture(61, 2 * ROUND)), batch_size=ROUND)
    added = graph.fun("AddRound", video=videos, match_colors=0.0)
    with pytest.raises(Failed, match="video is a list of 2 videos, expected one: "):
        graph.get(graph.fun("JoinRounds", rounds=added[0], overlap=OVERLAP, length=21))


def test_end_frames_that_leave_nothing_to_make(lab):
    case = Case(lab, 9)
    with pytest.raises(
        Failed, match="end_image has 3 frames, but the last round adds only 3: add 1 or more to length"
    ):
        case.run(length=LENGTH - 5, end=picture(1, 3))
    assert case.count() == 0, "before the first round"


def test_one_round_knows_as_many_frames_as_it_is_given(lab):
    """A single start image leaves more room for end images than a clip as long as the overlap."""
    for start, most in ((1, ROUND - 2), (OVERLAP, ROUND - OVERLAP - 1)):
        case = Case(lab, 10 + start, start)
        too_many = f"has {most + 1} frames, but the last round adds only {most + 1}: give at most {most}, or set round"
        with pytest.raises(Failed, match=too_many):
            case.run(length=ROUND, end=picture(1, most + 1))
        video, rounds = case.run(length=ROUND, end=picture(1, most))
        assert len(video) == ROUND and rounds == 1


def test_no_start_image(lab):
    graph, video = Case(lab, 9).graph()
    del graph.workflow[video.key]["inputs"]["start_image"]
    with pytest.raises(Failed, match="start_image"):
        graph.get(video)


@pytest.mark.parametrize("model", ["tiny-2b-control", "tiny-5b-text"])
def test_a_model_that_takes_no_images(lab, model):
    channels = 32 if "control" in model else 16
    with pytest.raises(Failed, match=rf"takes {channels} channels \(\w+\), expected an InP model \(33 channels\)"):
        Case(lab, 9).run(model=model)


def test_parts_of_another_family_and_missing_ones(lab):
    case = Case(lab, 9)
    for name, given, message in (
        ("model", ("ProbeForeignModel", {}), "expected a CogVideoX-Fun model"),
        ("vae", ("VAELoader", {"vae_name": "pixel_space"}), "the VAE is of another family"),
    ):
        graph, video = case.graph()
        kind, inputs = given
        graph.workflow[video.key]["inputs"][name] = graph.node(kind, **inputs)[0]
        with pytest.raises(Failed, match=message):
            graph.get(video)
    graph, video = case.graph()
    graph.workflow[video.key]["inputs"]["clip"] = graph.loader("no-text")[1]
    with pytest.raises(Failed, match="the CLIP is empty: the model's folder has no text_encoder"):
        graph.get(video)


def test_a_length_of_a_round_that_the_model_does_not_take(lab):
    """V1.5 takes 13 and 21 frames, but not 17."""
    case = Case(lab, 10)
    with pytest.raises(Failed, match="round_length is 17 frames, which the model does not take: set it to 13"):
        case.run(model="tiny-v1.5", round_length=17)
    made, rounds = case.run(model="tiny-v1.5", round_length=13)
    assert len(made) == LENGTH and rounds == 3
