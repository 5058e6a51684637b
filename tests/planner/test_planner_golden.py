"""The planner against numbers of the published one, in float32."""

from __future__ import annotations

import pytest
import torch

from navsim_recogdrive.planner import denormalize_trajectory, normalize_trajectory
from navsim_recogdrive.planner.schedules import cosine_ddpm_tables, ddim_tables

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def assert_same_trajectory(found, expected):
    """1e-5 in normalised units, in which the network works; that is 0.3 mm in x."""
    torch.testing.assert_close(normalize_trajectory(found), normalize_trajectory(expected), rtol=0, atol=1e-5)


def test_network_and_its_intermediate_tensors(tiny_planner, scenes, golden):
    planner, expected = tiny_planner(), golden("tiny_dit_forward")
    found = {}

    def record_output(name):
        return lambda module, args, output: found.__setitem__(name, output)

    def record_input(name):
        return lambda module, args: found.__setitem__(name, args[0])

    model = planner.model
    for name, module in {
        "vl_embeds": planner.feature_encoder,
        "his_embed": planner.his_traj_encoder,
        "ego_embed": planner.ego_status_encoder,
        "action_embed": planner.action_encoder,
        "timestep_emb": model.timestep_encoder,
        "block0_adaln": model.transformer_blocks[0].adaLN_modulation,
        "block0_norm1": model.transformer_blocks[0].norm1,
        "block0_attn_out": model.transformer_blocks[0].attn,
        "block0_ffn_out": model.transformer_blocks[0].ffn,
        "block1_attn_out": model.transformer_blocks[1].attn,
        "hidden_4": model.transformer_blocks[3],
        "dit_out": model,
    }.items():
        module.register_forward_hook(record_output(name))
    for name, module in {
        "fused": model,
        "timestep_proj": model.timestep_encoder.timestep_embedder,
        "block0_attn_in": model.transformer_blocks[0].attn,
        "block0_ffn_in": model.transformer_blocks[0].ffn,
        "block1_attn_in": model.transformer_blocks[1].attn,
        **{f"hidden_{index}": block for index, block in enumerate(model.transformer_blocks)},
    }.items():
        module.register_forward_pre_hook(record_input(name))
    with torch.no_grad():
        condition = planner.condition(**scenes)
        decoded = planner.predict(condition, expected["x_t"][:, None], expected["t"][:, None])
        found["decoded"] = decoded
        found["action_pos_encoding"] = planner.action_encoder.encode_timesteps(expected["t"])[:, None].expand(3, 8, 16)
        found["rms_out"] = model.final_layer.norm_final(expected["rms_in"])
    found["rope_cos"] = model.rotary_embedder.cos_cached
    found["rope_sin"] = model.rotary_embedder.sin_cached
    assert found.keys() == expected.keys() - {"x_t", "t", "rms_in"}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.reshape(expected[name].shape), expected[name], **CLOSE, msg=name)


def test_schedule_tables(golden):
    expected = golden("schedule_ddim_100_5")
    tables = cosine_ddpm_tables(100)
    tables |= ddim_tables(tables["ddpm_alphas_cumprod"], 5)
    assert tables.keys() == expected.keys()
    for name, table in tables.items():
        torch.testing.assert_close(table, expected[name], rtol=3e-7, atol=0, msg=name)


def test_normalisation(golden):
    expected = golden("norm_odo")
    torch.testing.assert_close(normalize_trajectory(expected["traj"]), expected["normed"], **CLOSE)
    torch.testing.assert_close(denormalize_trajectory(expected["normed"]), expected["denormed"], **CLOSE)
    corners = torch.tensor([-1.0, 1.0, 0.0])[:, None].expand(3, 3)
    torch.testing.assert_close(denormalize_trajectory(corners), expected["denorm_of_pm1"], **CLOSE)


@pytest.mark.parametrize(("method", "kind"), [("ddim", "det"), ("ddim", "stoch"), ("ddpm", "stoch"), ("flow", "stoch")])
def test_inference(conditioned, golden, method, kind):
    planner, condition = conditioned(method)
    expected = golden(f"tiny_get_action_{method}_{kind}")
    noise = expected["step_noise"][:, :, None] if "step_noise" in expected else None
    found = planner.sample(
        condition,
        deterministic=kind == "det",
        initial_noise=expected["init_noise"][:, None],
        step_noise=noise,
    )
    assert found.dtype == torch.float32
    assert_same_trajectory(found[:, 0], expected["pred_traj"])


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_rollout(conditioned, golden, method):
    planner, condition = conditioned(method)
    expected = golden(f"tiny_sample_chain_{method}_stoch_grpo")
    chain = planner.sample_chain(
        condition, initial_noise=expected["init_noise"][:, None], step_noise=expected["step_noise"][:, :, None]
    )
    torch.testing.assert_close(chain.states[:, 0], expected["chain"], rtol=0, atol=1e-5)
    assert_same_trajectory(chain.trajectories[:, 0], expected["pred_traj"])


def test_ddim_log_probability(conditioned, golden):
    planner, condition = conditioned("ddim", "planner_tiny_actor")
    expected = golden("tiny_logprobs_ddim")
    found = planner.log_prob(condition, expected["chain"][:, None])
    assert found.shape == (3, 1, 5, 8, 3)
    torch.testing.assert_close(found.reshape(15, 8, 3), expected["log_prob"], **CLOSE)


def test_group_rollouts_of_actor_and_reference(conditioned, golden):
    """DiffGRPO's chains and log-probabilities: eight samples per scene of the actor, one of the reference policy."""
    expected = golden("tiny_grpo_default")
    actor, condition = conditioned("ddim", "planner_tiny_actor")
    chain = actor.sample_chain(
        condition,
        8,
        initial_noise=expected["actor_init_noise"].view(3, 8, 8, 3),
        step_noise=expected["actor_step_noise"].view(5, 3, 8, 8, 3),
    )
    torch.testing.assert_close(chain.states.view(24, 6, 8, 3), expected["actor_chain"], rtol=0, atol=1e-5)
    found = actor.log_prob(condition, expected["actor_chain"].view(3, 8, 6, 8, 3))
    torch.testing.assert_close(found.reshape(120, 8, 3), expected["actor_log_prob"], **CLOSE)

    reference, its_condition = conditioned("ddim")
    teacher = reference.sample_chain(
        its_condition,
        initial_noise=expected["teacher_init_noise"][:, None],
        step_noise=expected["teacher_step_noise"][:, :, None],
    )
    torch.testing.assert_close(teacher.states[:, 0], expected["teacher_chain"], rtol=0, atol=1e-5)
    found = actor.log_prob(condition, expected["teacher_chain"][:, None])
    torch.testing.assert_close(found.reshape(15, 8, 3), expected["teacher_log_prob"], **CLOSE)


def test_ddpm_schedule_alone(golden):
    for name, table in golden("schedule_ddpm_100").items():
        torch.testing.assert_close(cosine_ddpm_tables(100)[name], table, **CLOSE)
