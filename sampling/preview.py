"""Latents to RGB by a matrix, for the preview that a sampler shows while it works."""

from collections.abc import Mapping
from typing import NamedTuple

FACTORS, BIAS = "latent_rgb_factors", "latent_rgb_factors_bias"  # what a VAE's configuration may hold


class PreviewFactors(NamedTuple):
    """From scaled latents to RGB of -1..1: three factors per latent channel, and three numbers that are added."""

    factors: list[list[float]]
    bias: list[float]

    @classmethod
    def from_config(cls, values: Mapping) -> "PreviewFactors":
        """Those of a VAE's configuration, or the published ones if it has none."""
        return cls(values[FACTORS], values[BIAS]) if FACTORS in values else PUBLISHED

    def to_config(self) -> dict:
        return {FACTORS: self.factors, BIAS: self.bias}


# For CogVideoX's latent space, from ComfyUI-CogVideoXWrapper's latent preview; how they were fitted is not published.
PUBLISHED = PreviewFactors(
    [
        [0.1195, 0.0992, -0.0048], [-0.0012, 0.0550, 0.0213], [-0.0141, -0.0087, -0.0210], [0.0306, 0.1219, 0.0140],
        [0.0927, 0.0303, 0.0508], [0.0379, 0.0494, 0.0586], [0.0177, 0.0088, 0.0360], [0.1061, 0.0234, 0.0572],
        [0.1274, -0.0110, 0.0433], [-0.0187, 0.0822, 0.1061], [0.0084, 0.0762, 0.0930], [0.1294, 0.1236, 0.0448],
        [0.0457, 0.0411, -0.0177], [0.0002, -0.0140, 0.0533], [0.0808, 0.1155, -0.0215], [-0.0152, -0.0058, 0.0722],
    ],
    [0.0, 0.0, 0.0],
)  # fmt: skip
