"""Half precision: schedules and sampler arithmetic stay float32."""

from __future__ import annotations

import copy

import pytest
import torch

# Largest and mean distance in metres from float32 of a trajectory of the tiny planner, whose random weights make it far
# more sensitive than a trained one. Measured with torch 2.13 on a CPU, worst of the three methods, cast or autocast:
# bfloat16 0.76 and 0.16 m, float16 0.09 and 0.019 m (all ddim). Twice that is allowed.
BOUND_M = {torch.bfloat16: (1.5, 0.32), torch.float16: (0.18, 0.04)}


def run(planner, scenes, golden):
    noise = golden("tiny_sample_chain_ddim_stoch_grpo")
    return planner.sample(
        planner.condition(**scenes),
        initial_noise=noise["init_noise"][:, None],
        step_noise=None if planner.config.method == "flow" else noise["step_noise"][:, :, None],
    )


def assert_near(found, reference, dtype):
    assert found.dtype == torch.float32
    distance = (found - reference)[..., :2].norm(dim=-1)
    assert torch.isfinite(found).all()
    assert 0 < distance.max() < BOUND_M[dtype][0]
    assert distance.mean() < BOUND_M[dtype][1]


@pytest.mark.parametrize("method", ["ddim", "ddpm", "flow"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cast_planner_stays_near_float32(tiny_planner, scenes, golden, method, dtype):
    reference = run(tiny_planner(method), scenes, golden)
    assert_near(run(tiny_planner(method).to(dtype), scenes, golden), reference, dtype)


@pytest.mark.parametrize("method", ["ddim", "ddpm", "flow"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_float32(tiny_planner, scenes, golden, method, dtype):
    planner = tiny_planner(method)
    reference = run(planner, scenes, golden)
    with torch.autocast("cpu", dtype=dtype):
        found = run(planner, scenes, golden)
    assert_near(found, reference, dtype)


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
def test_schedules_and_rotary_tables_stay_float32(tiny_planner, cast):
    planner = tiny_planner()
    before = {name: buffer.clone() for name, buffer in planner.named_buffers()}
    planner = copy.deepcopy(getattr(planner, cast)())
    assert planner.feature_encoder.weight.dtype != torch.float32
    for name, buffer in planner.named_buffers():
        assert buffer.dtype == before[name].dtype, name
        assert torch.equal(buffer, before[name]), name
    assert torch.isposinf(planner.eta.eta_logit).all()


def test_buffers_follow_the_device():
    from navsim_recogdrive.planner import DiffusionPlanner, PlannerConfig

    planner = DiffusionPlanner(PlannerConfig(num_heads=1, head_dim=8, num_layers=2)).to("meta", torch.bfloat16)
    assert {buffer.device.type for buffer in planner.buffers()} == {"meta"}
    assert planner.ddpm_betas.dtype == torch.float32


def test_autocast_keeps_keys_and_values_small(tiny_planner, scenes):
    planner = tiny_planner()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        condition = planner.condition(**scenes)
    assert {t.dtype for pair in condition.keys_and_values for t in pair} == {torch.bfloat16}


def test_gradients_reach_every_parameter_after_a_rollout_under_autocast(tiny_planner, scenes):
    planner = tiny_planner()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = planner.sample_chain(planner.condition(**scenes), 2).states
        loss = planner.log_prob(planner.condition(**scenes), states).mean()
    loss.backward()
    without = [name for name, p in planner.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == ["eta.eta_logit"]
