from __future__ import annotations

import torch

from navsim_recogdrive.policy.noise import scene_noise, scene_seed

SIZES = {"num_samples": 2, "num_steps": 5, "horizon": 8, "seed": 0}


def _scenes(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 4, 3, generator=generator), torch.randn(count, 8, generator=generator)


def test_noise_belongs_to_the_scene() -> None:
    poses, status = _scenes()
    initial, steps = scene_noise(poses, status, **SIZES)
    assert initial.shape == (3, 2, 8, 3)
    assert steps.shape == (5, 3, 2, 8, 3)
    alone, alone_steps = scene_noise(poses[1:2], status[1:2], **SIZES)
    torch.randn(7)  # the global generator plays no part
    assert torch.equal(alone[0], initial[1])
    assert torch.equal(alone_steps[:, 0], steps[:, 1])
    assert not torch.equal(initial[0], initial[1])
    assert not torch.equal(initial, scene_noise(poses, status, **{**SIZES, "seed": 1})[0])


def test_the_first_samples_are_the_same_however_many_follow() -> None:
    poses, status = _scenes(1)
    few, many = (scene_noise(poses, status, **{**SIZES, "num_samples": samples}) for samples in (1, 16))
    assert torch.equal(few[0][:, 0], many[0][:, 0])
    assert torch.equal(few[1][:, :, 0], many[1][:, :, 0])
    assert not torch.equal(many[1][:, :, 0], many[1][:, :, 1])
    # One trajectory is drawn as it always was, whatever is drawn beside it.
    generator = torch.Generator().manual_seed(scene_seed(poses[0], status[0], 0))
    alone = torch.randn(6, 1, 8, 3, generator=generator)
    assert torch.equal(few[0][0], alone[0])
    assert torch.equal(few[1][:, 0], alone[1:])


def test_seed_sees_every_number_but_not_the_sign_of_zero() -> None:
    poses, status = torch.zeros(4, 3), torch.zeros(8)
    seed = scene_seed(poses, status, 0)
    assert scene_seed(-poses, -status, 0) == seed
    poses[2, 1] = 1e-6
    assert scene_seed(poses, status, 0) != seed


def test_draws_are_standard_normal() -> None:
    poses, status = _scenes(200)
    initial, steps = scene_noise(poses, status, **SIZES)
    for draws in (initial, steps):
        assert abs(draws.mean().item()) < 0.02
        assert abs(draws.std().item() - 1) < 0.02
