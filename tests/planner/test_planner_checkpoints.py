"""Loading published and own checkpoints, and refusing what does not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from navsim_recogdrive.planner import (
    DiffusionPlanner,
    PlannerCheckpointError,
    PlannerConfig,
    infer_planner_config,
    load_planner_weights,
)

PUBLISHED_PREFIX = "agent.action_head."


@pytest.fixture
def config() -> PlannerConfig:
    return PlannerConfig(num_heads=2, head_dim=8, num_layers=4, output_size=32, mlp_hidden_size=24)


@pytest.fixture
def trained(config: PlannerConfig) -> DiffusionPlanner:
    planner = DiffusionPlanner(config)
    for parameter in planner.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    return planner


def assert_same_weights(found: DiffusionPlanner, expected: DiffusionPlanner) -> None:
    for (key, value), other in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def lightning(state: dict[str, torch.Tensor], path: Path) -> Path:
    torch.save({"epoch": 3, "state_dict": state, "optimizer_states": [{"state": {0: torch.ones(2)}}]}, path)
    return path


def with_prefix(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("method", ["ddim", "ddpm", "flow"])
def test_lightning_checkpoint(config, tmp_path, method):
    trained = DiffusionPlanner(dataclasses.replace(config, method=method))
    path = lightning(with_prefix(trained.state_dict(), PUBLISHED_PREFIX), tmp_path / "epoch=3.ckpt")
    planner = DiffusionPlanner(infer_planner_config(path))
    assert planner.config == trained.config
    report = load_planner_weights(planner, path)
    assert (report.prefix, report.loaded, report.set_aside, report.outside) == (
        PUBLISHED_PREFIX,
        len(trained.state_dict()),
        0,
        0,
    )
    assert_same_weights(planner, trained)


def test_reinforcement_checkpoint_sets_the_reference_policy_aside(config, trained, tmp_path):
    own = trained.state_dict()
    reference = {f"old_policy.{key}": torch.zeros_like(value) for key, value in own.items()}
    path = lightning(with_prefix(own | reference, PUBLISHED_PREFIX), tmp_path / "rl.ckpt")
    assert infer_planner_config(path) == config
    planner = DiffusionPlanner(config)
    report = load_planner_weights(planner, path)
    assert (report.loaded, report.set_aside) == (len(own), len(own))
    assert_same_weights(planner, trained)


def test_averaged_weights_and_the_raw_ones_beside_them(config, trained, tmp_path):
    averaged = with_prefix(trained.state_dict(), PUBLISHED_PREFIX)
    raw = with_prefix(DiffusionPlanner(config).state_dict(), PUBLISHED_PREFIX)
    path = tmp_path / "averaged.ckpt"
    torch.save({"state_dict": averaged, "current_model_state": raw}, path)
    for weights, expected in (({}, averaged), ({"weights": "averaged"}, averaged), ({"weights": "raw"}, raw)):
        planner = DiffusionPlanner(config)
        load_planner_weights(planner, path, **weights)
        for name, value in planner.state_dict().items():
            assert torch.equal(value, expected[PUBLISHED_PREFIX + name]), name

    plain = lightning(averaged, tmp_path / "plain.ckpt")
    save_file(trained.state_dict(), tmp_path / "plain.safetensors")
    for file in (plain, tmp_path / "plain.safetensors"):
        with pytest.raises(PlannerCheckpointError, match=r"holds no raw weights.*agent\.ema\.decay"):
            load_planner_weights(DiffusionPlanner(config), file, "raw")
    with pytest.raises(ValueError, match="weights must be one of"):
        load_planner_weights(DiffusionPlanner(config), plain, "swa")


def test_planner_beside_a_vlm(config, trained, tmp_path):
    state = with_prefix(trained.state_dict(), PUBLISHED_PREFIX) | {"agent.vlm.lm_head.weight": torch.ones(3)}
    planner = DiffusionPlanner(config)
    assert load_planner_weights(planner, lightning(state, tmp_path / "a.ckpt")).outside == 1
    assert_same_weights(planner, trained)


@pytest.mark.parametrize("prefix", ["", "planner.", "agent.policy.action_head."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_plain_state_dicts_under_any_prefix(config, trained, tmp_path, prefix, suffix):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(with_prefix(trained.state_dict(), prefix), path)
    planner = DiffusionPlanner(config)
    assert load_planner_weights(planner, str(path)).prefix == prefix
    assert_same_weights(planner, trained)


def test_half_precision_file_keeps_float32_schedules(config, trained):
    state = {k: v.bfloat16() if v.is_floating_point() else v for k, v in trained.state_dict().items()}
    planner = DiffusionPlanner(config)
    load_planner_weights(planner, state)
    assert torch.equal(planner.ddim_alphas, trained.ddim_alphas)
    assert torch.equal(planner.fusion_projector.weight, trained.fusion_projector.weight.bfloat16().float())


def test_an_8b_checkpoint_for_a_2b_planner_is_named_and_changes_nothing(config, trained):
    planner = DiffusionPlanner(dataclasses.replace(config, hidden_state_size=1536))
    wide = DiffusionPlanner(dataclasses.replace(config, hidden_state_size=3584)).state_dict()
    before = {key: value.clone() for key, value in planner.state_dict().items()}
    with pytest.raises(PlannerCheckpointError) as error:
        load_planner_weights(planner, wide)
    message = str(error.value)
    assert "looks like an 8B checkpoint (feature_encoder.weight [16, 3584]) for a 2B planner" in message
    assert "other shape (1): feature_encoder.weight [16, 3584] (expected [16, 1536])" in message
    assert "missing" not in message
    assert all(torch.equal(value, before[key]) for key, value in planner.state_dict().items())


def test_another_method_is_named(config, trained):
    with pytest.raises(PlannerCheckpointError, match=r"Its method is 'ddim', the planner's 'flow'"):
        load_planner_weights(DiffusionPlanner(dataclasses.replace(config, method="flow")), trained.state_dict())


def test_another_size_is_named(config, trained):
    with pytest.raises(PlannerCheckpointError, match=r"Its num_heads is 2, the planner's 4"):
        load_planner_weights(DiffusionPlanner(dataclasses.replace(config, num_heads=4)), trained.state_dict())


def test_every_difference_is_listed(config, trained):
    state = trained.state_dict()
    del state["fusion_projector.bias"], state["ddpm_betas"]
    state["stray.weight"] = torch.zeros(1)
    with pytest.raises(PlannerCheckpointError) as error:
        load_planner_weights(DiffusionPlanner(config), state)
    assert "missing (2): ddpm_betas, fusion_projector.bias" in str(error.value)
    assert "unexpected (1): stray.weight" in str(error.value)


def test_an_attention_ego_status_encoder_is_named(config, trained):
    state = {key: value for key, value in trained.state_dict().items() if not key.startswith("ego_status_encoder.")}
    state["ego_status_encoder.attn.in_proj_weight"] = torch.zeros(48, 16)
    with pytest.raises(PlannerCheckpointError, match="ego-status encoder is an attention"):
        load_planner_weights(DiffusionPlanner(config), state)


def test_another_noise_schedule_is_refused(config, trained):
    state = trained.state_dict()
    state["ddpm_betas"] = torch.linspace(1e-4, 0.02, 100)
    with pytest.raises(PlannerCheckpointError, match="another noise schedule: ddpm_betas"):
        load_planner_weights(DiffusionPlanner(config), state)


def test_another_eta_is_refused(config, trained):
    state = trained.state_dict()
    state["eta.eta_logit"] = torch.zeros(1)
    with pytest.raises(PlannerCheckpointError, match=r"eta_logit \[0\.0\], expected \[inf\]"):
        load_planner_weights(DiffusionPlanner(config), state)


def test_weights_that_are_not_finite_are_refused(config, trained):
    state = {key: value.clone() for key, value in trained.state_dict().items()}
    state["action_decoder.fc2.bias"][1] = torch.nan
    with pytest.raises(PlannerCheckpointError, match=r"not finite: action_decoder\.fc2\.bias"):
        load_planner_weights(DiffusionPlanner(config), state)


def test_a_file_without_a_planner_says_what_it_holds(config, tmp_path):
    path = tmp_path / "vlm.safetensors"
    save_file({"language_model.model.norm.weight": torch.ones(2)}, path)
    for read in (infer_planner_config, lambda p: load_planner_weights(DiffusionPlanner(config), p)):
        with pytest.raises(PlannerCheckpointError, match=r"one diffusion planner.*found none.*language_model\.model"):
            read(path)


def test_two_planners_are_ambiguous_unless_one_is_the_action_head(config, trained):
    state = with_prefix(trained.state_dict(), "student.") | with_prefix(trained.state_dict(), "teacher.")
    with pytest.raises(PlannerCheckpointError, match="found several"):
        load_planner_weights(DiffusionPlanner(config), state)
    report = load_planner_weights(DiffusionPlanner(config), state | with_prefix(trained.state_dict(), PUBLISHED_PREFIX))
    assert report.prefix == PUBLISHED_PREFIX


def test_a_missing_file(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no planner checkpoint at .*absent\.ckpt"):
        load_planner_weights(DiffusionPlanner(config), tmp_path / "absent.ckpt")


class Unknown:
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [({"state_dict": Unknown()}, "stores an object of .*Unknown"), ([1, 2], "must hold a state dict")],
)
def test_a_file_of_other_objects_is_refused(config, tmp_path, content, message):
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    with pytest.raises(PlannerCheckpointError, match=message):
        infer_planner_config(path)


def test_a_truncated_file_is_refused(config, trained, tmp_path):
    path = lightning(with_prefix(trained.state_dict(), PUBLISHED_PREFIX), tmp_path / "cut.ckpt")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(PlannerCheckpointError, match="cannot be read"):
        infer_planner_config(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"hello world",
        b"<html>404</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"U\xdcb",
        b"PK\3\4",
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(config, tmp_path, content, suffix):
    path = tmp_path / f"other{suffix}"
    path.write_bytes(content)
    with pytest.raises(PlannerCheckpointError, match="cannot be read as a checkpoint.*Git LFS pointer") as refused:
        infer_planner_config(path)
    assert "\n" not in str(refused.value)
    assert "weights_only=False" not in str(refused.value)


def test_a_truncated_safetensors_file_is_refused(trained, tmp_path):
    path = tmp_path / "cut.safetensors"
    save_file(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(PlannerCheckpointError, match="cannot be read"):
        infer_planner_config(path)


def test_half_a_planner_has_no_configuration(trained):
    state = {key: value for key, value in trained.state_dict().items() if not key.startswith("model.final_layer")}
    with pytest.raises(PlannerCheckpointError, match=r"whole diffusion planner.*model\.final_layer"):
        infer_planner_config(state)
