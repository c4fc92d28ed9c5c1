"""Pictures of latents, and how long previews may take."""

import pytest
import torch
from cogvideox_fun.sampling.preview import Budget, PreviewFactors, durations, rgb_frames, to_pictures


class Clock:
    """Time that passes only when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def sampled(steps: int, step_seconds: float, costs: list[float]) -> tuple[list[int], float]:
    """The steps that showed a preview, and their share of the time; ``costs`` of one after another."""
    clock = Clock()
    budget, shown, last = Budget(clock=clock), [], 0.0
    for step in range(steps):
        clock.now += step_seconds
        if budget.allows(last):
            last = costs[min(len(shown), len(costs) - 1)]
            with budget.spending():
                clock.now += last
            shown.append(step)
    return shown, budget.spent / (clock.now - 100)


@pytest.mark.parametrize("cost", [0.001, 0.04, 0.3, 2.0])
def test_previews_take_a_twentieth_of_the_time(cost):
    """Beyond the first one, whose cost is not known before it is made."""
    shown, share = sampled(100, 1.0, [cost])
    assert shown[0] == 0, "the first step is always shown"
    assert share <= max(0.05, cost / 100)
    assert len(shown) >= min(100, max(1, int(5 / cost))), "the share is used"


def test_a_slow_first_preview_is_made_up_for():
    """It cost 2 seconds, the others 0.02: the next one comes when all together are a twentieth."""
    shown, _ = sampled(100, 1.0, [2.0, 0.02])
    assert shown[:3] == [0, 77, 78], "2 + 2 seconds are a twentieth of the time only after 80 seconds"


def test_a_preview_that_would_not_fit_is_left_out():
    """0.04 seconds of 1 are less than a twentieth, but another one would make it 0.08."""
    clock = Clock()
    budget = Budget(clock=clock)
    with budget.spending():
        clock.now += 0.04
    clock.now = 101.0
    assert not budget.allows(0.04)
    clock.now = 101.7
    assert budget.allows(0.04)


def test_rgb_factors():
    """Every frame of the latent: the matrix, the bias, and from -1..1 to 0..1."""
    generator = torch.Generator().manual_seed(0)
    latents, matrix = torch.randn(16, 3, 2, 4, generator=generator), torch.randn(16, 3, generator=generator)
    factors = PreviewFactors(matrix.tolist(), [0.1, -0.2, 0.3])
    made = rgb_frames(latents, factors)
    assert made.shape == (3, 3, 2, 4)
    expected = (latents[:, 2, 1, 3] @ matrix + torch.tensor([0.1, -0.2, 0.3]) + 1) / 2
    torch.testing.assert_close(made[2, :, 1, 3], expected)


@pytest.mark.parametrize("size, expected", [((40, 60), (40, 60)), ((480, 720), (341, 512)), ((1000, 8), (512, 4))])
def test_pictures_are_not_larger_than_asked(size, expected):
    frames = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    pictures = to_pictures(frames, 512)
    assert pictures.shape == (2, *expected, 3) and pictures.dtype == torch.uint8
    mean = frames.mean((2, 3)) if size != expected else frames.clamp(0, 1).mean((2, 3))
    torch.testing.assert_close(pictures.float().mean((1, 2)) / 255, mean, rtol=0, atol=0.01)


@pytest.mark.parametrize("latent_t", [1, 2, 13])
def test_a_picture_stays_as_long_as_its_frames(latent_t):
    frames = 4 * latent_t - 3
    every, coarse = durations(frames, latent_t), durations(latent_t, latent_t)
    assert every == [125] * frames and sum(coarse) == sum(every) and len(coarse) == latent_t
