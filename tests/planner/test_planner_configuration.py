"""Sizes, and the state dict that published checkpoints expect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from navsim_recogdrive.planner import DiffusionPlanner, PlannerConfig

PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "planner" / "published_keys.json").read_text())


def on_meta(config: PlannerConfig) -> DiffusionPlanner:
    """A planner without memory: the large DiT has 522 M parameters."""
    with torch.device("meta"):
        return DiffusionPlanner(config)


def entries(planner: DiffusionPlanner) -> list[list[object]]:
    parameters = dict(planner.named_parameters())
    return [
        [
            key,
            list(value.shape),
            str(value.dtype).removeprefix("torch."),
            "buffer" if key not in parameters else "trained" if parameters[key].requires_grad else "frozen",
        ]
        for key, value in planner.state_dict().items()
    ]


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize(("model", "width"), [("2B", 1536), ("8B", 3584)])
def test_ddim_state_dict_in_published_order(size, model, width):
    planner = on_meta(getattr(PlannerConfig, size)(hidden_state_size=width))
    embedding = planner.config.embedding_size
    expected = [
        [key, [embedding, width] if key == "feature_encoder.weight" else shape, dtype, kind]
        for key, shape, dtype, kind in PUBLISHED[f"{size}_2B_ddim"]["entries"]
    ]
    assert entries(planner) == expected
    assert sum(p.numel() for p in planner.parameters()) == PUBLISHED[f"{size}_{model}_ddim"]["parameters"]


@pytest.mark.parametrize(("method", "count"), [("ddim", 347), ("ddpm", 339), ("flow", 327)])
def test_state_dict_of_each_method(method, count):
    missing = PUBLISHED.get(f"small_2B_{method}", {}).get("missing", [])
    expected = [row for row in PUBLISHED["small_2B_ddim"]["entries"] if row[0] not in missing]
    assert entries(on_meta(PlannerConfig.small(method=method))) == expected
    assert len(expected) == count


def test_initial_weights():
    planner = DiffusionPlanner(PlannerConfig(num_heads=2, head_dim=8, num_layers=4, hidden_state_size=16))
    for name, parameter in planner.named_parameters():
        if "adaLN_modulation" in name or "modulation_proj" in name:
            assert not parameter.any(), name
    assert 0.01 < planner.position_embedding.weight.std() < 0.03
    assert torch.isposinf(planner.eta.eta_logit).all()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"num_heads": 0}, "num_heads must be a positive integer, found 0"),
        ({"hidden_state_size": 1536.0}, "hidden_state_size must be a positive integer, found 1536.0"),
        ({"num_inference_steps": True}, "num_inference_steps must be a positive integer"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"num_layers": 15}, "num_layers must be even"),
        ({"method": "euler"}, "method must be one of ddim, ddpm, flow, found 'euler'"),
        ({"num_inference_steps": 101}, r"must lie in 1\.\.100 .* for ddim, found 101"),
    ],
)
def test_a_senseless_configuration_is_refused(override, message):
    with pytest.raises(ValueError, match=message):
        PlannerConfig.small(**override)


def test_flow_has_no_schedule_to_exceed():
    assert PlannerConfig.small(method="flow", num_inference_steps=200).num_inference_steps == 200
