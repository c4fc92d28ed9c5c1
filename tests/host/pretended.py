"""Run the pack's samplers and VAE in a ComfyUI on a pretended GPU, and write down what waits for it.

``python pretended.py COMFYUI MODELS OUTPUT``, with the ComfyUI's own Python; the models are those of `tiny_model`.
"""

import json
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[2] / "tools"), str(Path(__file__).parents[1] / "helpers")]
from pack import load_pack  # noqa: E402
from pretend_cuda import GPU, PretendedGPU, Seen, pretended_gpu, replaced  # noqa: E402

STEPS = 2, 3  # one more step, which has to wait once more
PNDM_STEPS = 4, 5  # its later steps use the results of three earlier ones
LATENT_FRAMES = 5, 9
CHUNKS = {"decode": (3, 5), "encode": (2, 4)}  # of them


def start(comfyui: str) -> None:
    """Make a ComfyUI importable that takes the GPU for its device."""
    sys.path[:0] = [comfyui]
    sys.argv = ["main.py", "--cpu", "--use-pytorch-cross-attention"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import utils.extra_config  # noqa: F401  # before other packages that have a module utils can be imported

    load_pack()


def on_the_gpu():
    """What ComfyUI would answer on a large GPU that computes in bf16; weights are moved by `PretendedGPU.to_gpu`."""
    import comfy.model_management

    def free(device=None, torch_free_too=False):
        return (1e12, 1e12) if torch_free_too else 1e12

    return replaced(
        comfy.model_management,
        get_torch_device=lambda: GPU,
        should_use_bf16=lambda *_args, **_options: True,
        load_models_gpu=lambda *_args, **_options: None,
        get_free_memory=free,
        get_total_memory=free,
    )


def text(seed: int) -> list:
    return [[torch.randn(1, 226, 32, generator=torch.Generator().manual_seed(seed)), {}]]


def latent(frames: int = 3) -> torch.Tensor:
    return torch.randn(1, 16, frames, 6, 10, generator=torch.Generator().manual_seed(3))


class Cases:
    """Every case is a function of the number of steps."""

    def __init__(self, models: Path, gpu: PretendedGPU):
        from cogvideox_fun.model_loading.comfyui.load import load_model
        from cogvideox_fun.model_loading.comfyui.vae import ComfyVAE

        self.gpu, self.models = gpu, {}
        for variant in ("2b", "5b", "v1.5", "2b-control"):
            self.models[variant] = load_model(models / f"tiny-{variant}", "bf16")
            assert self.models[variant].load_device == GPU and self.models[variant].model.manual_cast_dtype is None
            gpu.to_gpu(self.models[variant].model)
        self.vae = ComfyVAE(models / "tiny-2b" / "vae", device=GPU, dtype=torch.bfloat16)
        gpu.to_gpu(self.vae.first_stage_model)

    def sample(self, steps: int, variant: str = "5b", name: str = "cogvideox_ddim", model=None, conds=None, **options):
        from cogvideox_fun.nodes.sampling import Sampler

        positive, negative = conds or (text(1), text(2))
        start = options.pop("latent", {"samples": torch.zeros(1, 16, 4 if variant == "v1.5" else 3, 6, 10)})
        output = Sampler.execute(
            model or self.models[variant], positive, negative, start, 1, steps, 6.0, name, **options
        )
        (found,) = output.result
        assert found["samples"].device.type == "cpu" and found["samples"].shape == start["samples"].shape

    def windows(self, steps: int, schedule: str = "standard_static", fuse: str = "pyramid"):
        from cogvideox_fun.model_loading.comfyui.context_windows import with_windows

        model = with_windows(self.models["5b"], 9, 4, schedule, fuse)
        self.sample(steps, model=model, latent={"samples": torch.zeros(1, 16, 7, 6, 10)})

    def control(self, steps: int):
        from cogvideox_fun.nodes.conditioning import ControlConditioning

        found = ControlConditioning.execute(text(1), text(2), {"samples": latent()}, 1.0, 0.1, 0.6).result
        self.sample(steps, "2b-control", conds=found[:2])

    def inpaint(self, steps: int):
        from cogvideox_fun.nodes.conditioning import InpaintConditioning

        mask = torch.ones(3, 6, 10)
        mask[0] = 0
        found = InpaintConditioning.execute(text(1), text(2), {"samples": latent()}, mask).result
        self.sample(steps, conds=found[:2])

    def noise_mask(self, steps: int):
        mask = torch.ones(1, 1, 3, 6, 10)
        mask[..., :5] = 0
        self.sample(steps, latent={"samples": latent(), "noise_mask": mask})

    def another_schedule(self, steps: int):
        """As after ModelSamplingDiscrete: what the MODEL knew of alphas is gone."""
        from comfy.model_sampling import V_PREDICTION, ModelSamplingDiscrete

        class Sampling(ModelSamplingDiscrete, V_PREDICTION):
            pass

        sampling, model = Sampling(), self.models["5b"].model
        self.gpu.to_gpu(sampling)
        with replaced(model, model_sampling=sampling):
            self.sample(steps)

    def of_steps(self) -> dict:
        from cogvideox_fun.model_loading.comfyui.context_windows import FUSE_METHODS, SCHEDULES
        from cogvideox_fun.sampling.diffusers_samplers import DIFFUSERS_SAMPLERS

        cases = {name: lambda steps, name=name: self.sample(steps, name=name) for name in DIFFUSERS_SAMPLERS}
        cases |= {variant: lambda steps, variant=variant: self.sample(steps, variant) for variant in self.models}
        cases |= {f"windows {name}": lambda steps, name=name: self.windows(steps, name) for name in SCHEDULES}
        cases |= {
            f"windows {name}": lambda steps, name=name: self.windows(steps, fuse=name) for name in FUSE_METHODS[1:]
        }
        return cases | {
            "euler of ComfyUI": lambda steps: self.sample(steps, name="euler"),
            "dynamic_cfg": lambda steps: self.sample(steps, dynamic_cfg=True),
            "video to video": lambda steps: self.sample(steps, latent={"samples": latent()}, denoise=0.6),
            "control": self.control,
            "inpaint": self.inpaint,
            "noise mask": self.noise_mask,
            "another schedule": self.another_schedule,
        }

    def of_chunks(self) -> dict:
        """VAE runs, as functions of the number of latent frames."""
        decode = self.vae.decode_tiled

        def pixels(frames: int) -> torch.Tensor:
            return torch.rand(4 * frames - 3, 48, 80, 3)

        return {
            "decode": lambda frames: self.vae.decode(latent(frames)),
            "decode in tiles": lambda frames: decode(latent(frames), tile_x=8, tile_y=8, overlap=2),
            "encode": lambda frames: self.vae.encode(pixels(frames)),
            "encode in tiles": lambda frames: self.vae.encode_tiled(pixels(frames), tile_x=64, tile_y=64, overlap=16),
        }

    def count(self, case, size: int) -> Seen:
        self.gpu.seen = Seen()
        with torch.inference_mode():
            case(size)
        return self.gpu.seen


def main(comfyui: str, models: str, output: str) -> None:
    start(comfyui)
    found = {}
    with pretended_gpu() as gpu, on_the_gpu():
        cases = Cases(Path(models), gpu)

        def mark(_module, _inputs) -> None:
            gpu.seen.order.append("launch")

        for coder in (cases.vae.first_stage_model.encoder, cases.vae.first_stage_model.decoder):
            coder.register_forward_pre_hook(mark)
        for name, case in cases.of_steps().items():
            sizes = PNDM_STEPS if name == "cogvideox_pndm" else STEPS
            found[name] = [vars(cases.count(case, size)) for size in sizes]
        for name, case in cases.of_chunks().items():
            found[name] = [vars(cases.count(case, size)) for size in LATENT_FRAMES]
    Path(output).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
