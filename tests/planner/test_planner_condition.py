"""One condition per scene: computed once, repeated nowhere."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from navsim_recogdrive.planner.attention import CrossAttention


def test_samples_share_a_condition_and_do_not_see_each_other(conditioned):
    planner, condition = conditioned()
    noisy = torch.randn(3, 5, 8, 3)
    timesteps = torch.randint(0, 100, (3, 5))
    together = planner.predict(condition, noisy, timesteps)
    for n in range(5):
        alone = planner.predict(condition, noisy[:, n : n + 1], timesteps[:, n : n + 1])
        torch.testing.assert_close(together[:, n : n + 1], alone, rtol=1e-5, atol=1e-5)


def test_scenes_do_not_see_each_other(tiny_planner, scenes):
    planner = tiny_planner()
    noise = torch.randn(3, 2, 8, 3)
    together = planner.sample(planner.condition(**scenes), 2, deterministic=True, initial_noise=noise)
    for b in range(3):
        alone = planner.condition(**{name: tensor[b : b + 1] for name, tensor in scenes.items()})
        found = planner.sample(alone, 2, deterministic=True, initial_noise=noise[b : b + 1])
        torch.testing.assert_close(found, together[b : b + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3, 1), (1, 4), (3, 4), (4,)])
def test_timesteps_broadcast(conditioned, shape):
    planner, condition = conditioned()
    noisy = torch.randn(3, 4, 8, 3)
    timesteps = torch.randint(0, 100, shape)
    expected = planner.predict(condition, noisy, timesteps.expand(3, 4))
    torch.testing.assert_close(planner.predict(condition, noisy, timesteps), expected, rtol=1e-5, atol=1e-5)


def test_a_denoising_run_repeats_no_scene_work(tiny_planner, scenes, monkeypatch):
    planner, calls, key_shapes = tiny_planner(), Counter(), []
    attention = F.scaled_dot_product_attention

    def spy(query, key, value):
        key_shapes.append(tuple(key.shape))
        return attention(query, key, value)

    def count(name):
        return lambda *_: calls.update([name])

    keys_and_values = CrossAttention.keys_and_values
    monkeypatch.setattr(
        CrossAttention, "keys_and_values", lambda self, x: (calls.update(["keys"]), keys_and_values(self, x))[1]
    )
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    planner.feature_encoder.register_forward_hook(count("features"))
    planner.ego_status_encoder.register_forward_hook(count("ego status"))
    planner.model.transformer_blocks[0].adaLN_modulation.register_forward_hook(count("adaLN"))
    planner.sample(planner.condition(**scenes), 8)
    assert calls == {"features": 1, "ego status": 1, "keys": 2, "adaLN": 1}
    cross = [shape for shape in key_shapes if shape[2] == 37]
    assert cross == [(3, 2, 37, 8)] * 2 * 5


def test_log_probability_reads_each_key_once(conditioned, monkeypatch):
    planner, condition = conditioned()
    states = planner.sample_chain(condition, 4).states
    queries = []
    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v: (queries.append(tuple(q.shape)), attention(q, k, v))[1]
    )
    planner.log_prob(condition, states)
    assert queries.count((3, 2, 4 * 5 * 8, 8)) == 2
    assert len(queries) == 4


def test_inputs_are_left_unchanged(tiny_planner, scenes):
    planner = tiny_planner()
    before = {name: tensor.clone() for name, tensor in scenes.items()}
    noise, step_noise = torch.randn(3, 2, 8, 3), 3 * torch.randn(5, 3, 2, 8, 3)
    noise_before, step_noise_before = noise.clone(), step_noise.clone()
    condition = planner.condition(**scenes)
    chain = planner.sample_chain(condition, 2, initial_noise=noise, step_noise=step_noise)
    states_before = chain.states.clone()
    planner.log_prob(condition, chain.states).sum().backward()
    assert all(torch.equal(scenes[name], before[name]) for name in before)
    assert torch.equal(noise, noise_before)
    assert torch.equal(step_noise, step_noise_before)
    assert torch.equal(chain.states, states_before)


def test_another_vlm_is_refused_with_its_name(tiny_planner, scenes):
    with pytest.raises(ValueError, match=r"\[B, S, 1536\].*found \[3, 37, 3584\].*8B model"):
        tiny_planner().condition(torch.zeros(3, 37, 3584), scenes["past_poses"], scenes["ego_status"])


@pytest.mark.parametrize(
    ("name", "shape"),
    [("hidden_states", (37, 1536)), ("past_poses", (3, 12)), ("past_poses", (2, 4, 3)), ("ego_status", (3, 7))],
)
def test_a_wrong_shape_is_named(tiny_planner, scenes, name, shape):
    with pytest.raises(ValueError, match=rf"{name} must have shape .* found \[{', '.join(map(str, shape))}\]"):
        tiny_planner().condition(**{**scenes, name: torch.zeros(shape)})


def test_noisy_actions_of_other_scenes_are_refused(conditioned):
    planner, condition = conditioned()
    with pytest.raises(ValueError, match=r"\[3, N, 8, 3\].*found \[2, 1, 8, 3\]"):
        planner.predict(condition, torch.zeros(2, 1, 8, 3), 0)
