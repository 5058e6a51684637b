"""Samplers: right time steps, settings, noise, chains and their densities."""

from __future__ import annotations

import pytest
import torch

from navsim_recogdrive.planner import DiffusionPlanner, LogProbUnsupported, PlannerConfig, SamplerSettings
from navsim_recogdrive.planner.samplers import denoising_method
from navsim_recogdrive.planner.schedules import cosine_ddpm_tables, strided_timesteps

METHODS = ["ddim", "ddpm", "flow"]


@pytest.mark.parametrize(("method", "num_steps"), [("ddim", 5), ("ddim", 7), ("ddpm", 100), ("flow", 5), ("flow", 8)])
def test_a_perfect_network_leads_to_the_action(method, num_steps):
    tables = cosine_ddpm_tables(100)
    action = torch.empty(4, 8, 3).uniform_(-0.9, 0.9)
    steps = denoising_method(method, tables).steps(num_steps, eta=0.0, device=torch.device("cpu"))
    x = torch.randn(4, 8, 3)
    for k in range(num_steps):
        if method == "flow":
            prediction = (action - x) / (1 - steps.timesteps[k] / 1000)
        else:
            abar = tables["ddpm_alphas_cumprod"][steps.timesteps[k]]
            prediction = (x - abar.sqrt() * action) / (1 - abar).sqrt()
        x = steps.step(k, x, prediction).mean
    torch.testing.assert_close(x, action, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("num_steps", "expected"), [(5, [80, 60, 40, 20, 0]), (7, [84, 70, 56, 42, 28, 14, 0])])
def test_strided_timesteps(num_steps, expected):
    assert strided_timesteps(100, num_steps).tolist() == expected


@pytest.mark.parametrize("method", METHODS)
def test_steps_one_by_one_equal_all_at_once(method):
    steps = denoising_method(method, cosine_ddpm_tables(100)).steps(5, eta=1.0, device=torch.device("cpu"))
    x, prediction = torch.randn(2, 5, 8, 3), torch.randn(2, 5, 8, 3)
    together = steps.step(slice(None), x, prediction)
    for k in range(5):
        alone = steps.step(k, x[:, k], prediction[:, k])
        assert torch.equal(together.mean[:, k], alone.mean)
        assert (together.std is None) == (alone.std is None)
        if alone.std is not None:
            assert torch.equal(together.std[k], alone.std)


@pytest.mark.parametrize("method", METHODS)
def test_a_generator_decides_the_trajectories(conditioned, method):
    planner, condition = conditioned(method)
    first, again, other = (
        planner.sample(condition, 2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_noise_is_drawn_initial_first_then_step_by_step(conditioned):
    planner, condition = conditioned()
    found = planner.sample(condition, 2, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    initial = torch.randn(3, 2, 8, 3, generator=generator)
    step_noise = torch.stack([torch.randn(3, 2, 8, 3, generator=generator) for _ in range(5)])
    assert torch.equal(found, planner.sample(condition, 2, initial_noise=initial, step_noise=step_noise))


@pytest.mark.parametrize("method", METHODS)
def test_deterministic_uses_the_initial_noise_only(conditioned, method):
    planner, condition = conditioned(method)
    initial = torch.randn(3, 1, 8, 3)
    runs = [planner.sample(condition, deterministic=True, initial_noise=initial) for _ in range(2)]
    assert torch.equal(*runs)
    stochastic = [planner.sample(condition, initial_noise=initial) for _ in range(2)]
    assert torch.equal(*stochastic) == (method == "flow")


@pytest.mark.parametrize("method", METHODS)
def test_trajectories_stay_in_the_published_range(conditioned, method):
    planner, condition = conditioned(method)
    trajectories = planner.sample(condition, 16, initial_noise=10 * torch.randn(3, 16, 8, 3))
    low, high = torch.tensor([-1.57, -19.68, -1.67]), torch.tensor([65.17, 22.32, 1.86])
    assert (trajectories >= low - 1e-4).all()
    assert (trajectories <= high + 1e-4).all()


@pytest.mark.parametrize("method", METHODS)
def test_rollouts_build_no_graph_and_keep_every_state(tiny_planner, scenes, method):
    planner = tiny_planner(method)
    condition = planner.condition(**scenes)
    assert condition.context.requires_grad
    initial = torch.randn(3, 4, 8, 3)
    chain = planner.sample_chain(condition, 4, initial_noise=initial)
    assert chain.states.shape == (3, 4, 6, 8, 3)
    assert chain.trajectories.shape == (3, 4, 8, 3)
    assert not chain.states.requires_grad
    assert not chain.trajectories.requires_grad
    assert torch.equal(chain.states[:, :, 0], initial)


def test_the_end_of_a_chain_can_be_kept_unclamped(conditioned):
    planner, condition = conditioned()
    noise = {"initial_noise": torch.randn(3, 2, 8, 3), "step_noise": torch.full((5, 3, 2, 8, 3), 4.0)}
    published = planner.sample_chain(condition, 2, **noise)
    exact = planner.sample_chain(condition, 2, settings=SamplerSettings.rollout(clamp_chain_end=False), **noise)
    assert published.states[:, :, -1].abs().max() <= 1
    assert exact.states[:, :, -1].max() > 1
    assert torch.equal(published.states[:, :, :-1], exact.states[:, :, :-1])
    assert torch.equal(published.trajectories, exact.trajectories)


def test_std_floor_and_noise_clamp_bound_the_last_step(conditioned):
    planner, condition = conditioned()
    initial, huge = torch.randn(3, 1, 8, 3), torch.full((5, 3, 1, 8, 3), 100.0)
    quiet = huge.clone()
    quiet[-1] = 0
    settings = SamplerSettings.rollout(clamp_chain_end=False)
    last = [
        planner.sample_chain(condition, settings=settings, initial_noise=initial, step_noise=noise).states[:, :, -1]
        for noise in (huge, quiet)
    ]
    torch.testing.assert_close(last[0] - last[1], torch.full((3, 1, 8, 3), 0.04 * 5), rtol=0, atol=1e-5)


def test_ddpm_inference_adds_no_noise_at_the_last_step(conditioned):
    planner, condition = conditioned("ddpm")
    initial, step_noise = torch.randn(3, 1, 8, 3), torch.randn(5, 3, 1, 8, 3)
    other_end = step_noise.clone()
    other_end[-1] += 1
    runs = [planner.sample(condition, initial_noise=initial, step_noise=noise) for noise in (step_noise, other_end)]
    assert torch.equal(*runs)
    chains = [planner.sample_chain(condition, initial_noise=initial, step_noise=n) for n in (step_noise, other_end)]
    assert not torch.equal(chains[0].states[:, :, -1], chains[1].states[:, :, -1])


@pytest.mark.parametrize("method", METHODS)
def test_another_number_of_steps(conditioned, method):
    planner, condition = conditioned(method)
    settings = SamplerSettings.rollout(num_inference_steps=9)
    assert planner.sample_chain(condition, settings=settings).states.shape == (3, 1, 10, 8, 3)
    if method != "flow":
        with pytest.raises(ValueError, match=r"must lie in 1\.\.100 .* found 101"):
            planner.sample(condition, settings=SamplerSettings.inference(method, num_inference_steps=101))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("std_floor", [0.1, 0.3])
def test_log_probability_is_that_of_the_rollout_steps(conditioned, method, std_floor):
    planner, condition = conditioned(method)
    states = planner.sample_chain(condition, 2).states
    found = planner.log_prob(condition, states, std_floor=std_floor)
    steps = planner.method.steps(5, eta=0.2 if method == "flow" else 1.0, device=torch.device("cpu"))
    for k, t in enumerate([0, 200, 400, 600, 800] if method == "flow" else [80, 60, 40, 20, 0]):
        prediction = planner.predict(condition, states[:, :, k], t)
        mean, std = steps.step(k, states[:, :, k], prediction)
        std = std.clamp(min=std_floor)
        residual = (states[:, :, k + 1] - mean) / std
        expected = -0.5 * residual**2 - std.log() - 0.5 * torch.log(torch.tensor(2 * torch.pi))
        torch.testing.assert_close(found[:, :, k], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_log_probability_carries_gradients(tiny_planner, scenes, method):
    planner = tiny_planner(method)
    condition = planner.condition(**scenes)
    planner.log_prob(condition, planner.sample_chain(condition, 2).states).mean().backward()
    assert [n for n, p in planner.named_parameters() if p.grad is None] == (
        ["eta.eta_logit"] if method == "ddim" else []
    )


def test_log_probability_of_deterministic_flow_is_refused_by_name(conditioned):
    planner, condition = conditioned("flow")
    with pytest.raises(LogProbUnsupported, match="method 'flow' .* flow_noise_level 0.0"):
        planner.log_prob(condition, planner.sample_chain(condition).states, flow_noise_level=0.0)


@pytest.mark.parametrize("shape", [(3, 1, 8, 3), (2, 1, 6, 8, 3), (3, 1, 1, 8, 3), (3, 1, 6, 7, 3)])
def test_chains_of_another_shape_are_refused(conditioned, shape):
    planner, condition = conditioned()
    with pytest.raises(ValueError, match=r"states must have shape \[3, N, K \+ 1, 8, 3\]"):
        planner.log_prob(condition, torch.zeros(shape))


def test_noise_of_another_shape_is_refused(conditioned):
    planner, condition = conditioned()
    with pytest.raises(ValueError, match=r"initial_noise must have shape \[3, 2, 8, 3\], found \[3, 1, 8, 3\]"):
        planner.sample(condition, 2, initial_noise=torch.zeros(3, 1, 8, 3))
    with pytest.raises(ValueError, match=r"step_noise must have shape \[5, 3, 1, 8, 3\]"):
        planner.sample(condition, step_noise=torch.zeros(4, 3, 1, 8, 3))


@pytest.mark.parametrize(("field", "value"), [("std_floor", -0.1), ("noise_clamp", 0.0), ("flow_noise_level", -1.0)])
def test_senseless_sampler_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        SamplerSettings.rollout(**{field: value})


def test_a_fresh_planner_samples_finite_trajectories():
    planner = DiffusionPlanner(PlannerConfig(num_heads=1, head_dim=8, num_layers=2, hidden_state_size=16))
    condition = planner.condition(torch.randn(1, 5, 16), torch.zeros(1, 4, 3), torch.zeros(1, 8))
    assert torch.isfinite(planner.sample(condition, 3)).all()
