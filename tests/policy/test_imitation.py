"""The imitation objective and its learning rate, against numbers of the published code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from navsim_recogdrive.planner import DiffusionPlanner, PlannerConfig
from navsim_recogdrive.policy.imitation import imitation_loss
from navsim_recogdrive.policy.optimization import build_optimizer, learning_rate
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.policy.training_configuration import OptimizerConfig

DATA = Path(__file__).parents[1] / "data" / "planner"
METHODS = ["ddim", "ddpm", "flow"]
CURVES = json.loads((DATA / "lr_curves.json").read_text())


def golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(DATA / f"{name}.safetensors")


def tiny(method: str) -> DiffusionPlanner:
    planner = DiffusionPlanner(
        PlannerConfig(num_heads=2, head_dim=8, num_layers=4, output_size=32, mlp_hidden_size=32, method=method)
    )
    state = golden("planner_tiny")
    planner.load_state_dict({key: state[key] for key in planner.state_dict()})
    return planner


def condition(planner):
    inputs = golden("tiny_inputs")
    return planner.condition(inputs["vl_features"], inputs["his_traj"].view(3, 4, 3), inputs["status_feature"])


@pytest.fixture
def trajectories() -> torch.Tensor:
    return golden("tiny_inputs")["action"]


@pytest.mark.parametrize("method", METHODS)
def test_published_loss_and_every_gradient(trajectories, method):
    planner, expected = tiny(method), golden(f"tiny_train_{method}")
    levels = expected["t_cont" if method == "flow" else "t"]
    loss = imitation_loss(
        planner, condition(planner), trajectories, noise=expected["noise"][:, None], levels=levels[:, None]
    )
    loss.backward()
    torch.testing.assert_close(loss, expected["loss"], rtol=1e-5, atol=1e-5)
    trained = {name: parameter for name, parameter in planner.named_parameters() if parameter.requires_grad}
    assert {f"grad.{name}" for name in trained} == {key for key in expected if key.startswith("grad.")}
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, expected[f"grad.{name}"], rtol=1e-5, atol=2e-5, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_training_examples(trajectories, method):
    from navsim_recogdrive.planner import normalize_trajectory

    expected = golden(f"tiny_train_{method}")
    levels = expected["t_cont" if method == "flow" else "t"]
    example = tiny(method).method.training_example(normalize_trajectory(trajectories), expected["noise"], levels)
    torch.testing.assert_close(example.noisy_actions, expected["x_t"], rtol=1e-5, atol=1e-5)
    assert torch.equal(example.timesteps, expected["t"])
    target = expected["gt_norm"] - expected["noise"] if method == "flow" else expected["noise"]
    torch.testing.assert_close(example.target, target, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_several_draws_are_the_mean_of_single_draws(trajectories, method):
    planner = tiny(method)
    noise = torch.randn(3, 4, 8, 3)
    levels = planner.method.draw_levels((3, 4), torch.device("cpu"), None)
    with torch.no_grad():
        scene = condition(planner)
        together = imitation_loss(planner, scene, trajectories, draws_per_scene=4, noise=noise, levels=levels)
        alone = [
            imitation_loss(
                planner, scene, trajectories, noise=noise[:, n : n + 1].clone(), levels=levels[:, n : n + 1].clone()
            )
            for n in range(4)
        ]
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_generator_decides_the_draws(trajectories, method):
    planner = tiny(method)
    with torch.no_grad():
        losses = [
            imitation_loss(
                planner,
                condition(planner),
                trajectories,
                draws_per_scene=2,
                generator=torch.Generator().manual_seed(seed),
            )
            for seed in (1, 1, 2)
        ]
    assert losses[0] == losses[1] != losses[2]


def test_levels_are_drawn_as_published():
    cpu, generator = torch.device("cpu"), torch.Generator().manual_seed(0)
    timesteps = tiny("ddim").method.draw_levels((20_000,), cpu, generator)
    assert timesteps.dtype == torch.int64
    assert (int(timesteps.min()), int(timesteps.max())) == (0, 99)
    assert abs(timesteps.float().mean() - 49.5) < 1
    times = tiny("flow").method.draw_levels((20_000,), cpu, generator)
    assert 0 <= times.min() < times.max() < 1
    # The mean of Beta(1.5, 1) is 0.6; its distribution function is b^1.5.
    assert abs(times.mean() - (0.999 - 0.6) / 0.999) < 0.01
    assert abs((times > 0.5).float().mean() - (0.999 - 0.4995) ** 1.5) < 0.02


def test_training_lowers_the_loss(trajectories):
    planner = tiny("ddim")
    optimizer, scheduler = build_optimizer(
        planner.parameters(), OptimizerConfig(learning_rate=3e-3, epochs=40, warmup_epochs=1)
    )
    noise, levels = torch.randn(3, 8, 8, 3), torch.randint(0, 100, (3, 8))
    losses = []
    for _ in range(40):
        loss = imitation_loss(planner, condition(planner), trajectories, draws_per_scene=8, noise=noise, levels=levels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert torch.isposinf(planner.eta.eta_logit).all()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"draws_per_scene": 0}, "draws_per_scene must be at least 1, found 0"),
        ({"trajectories": torch.zeros(3, 40, 3)}, r"trajectories must have shape \[3, 8, 3\], found \[3, 40, 3\]"),
        ({"noise": torch.zeros(3, 8, 3)}, r"noise must have shape \[3, 1, 8, 3\]"),
        ({"levels": torch.zeros(3)}, r"levels must have shape \[3, 1\]"),
    ],
)
def test_wrong_input_is_named(trajectories, override, message):
    planner = tiny("ddim")
    with pytest.raises(ValueError, match=message):
        imitation_loss(**{"planner": planner, "condition": condition(planner), "trajectories": trajectories} | override)


@pytest.mark.parametrize("stage", ["il", "rl"])
def test_published_learning_rates_beyond_the_last_epoch_too(stage):
    arguments, expected = CURVES[stage]["args"], CURVES[stage]["lr_in_epoch"]
    assert len(expected) > arguments["epochs"]
    parameter = torch.nn.Parameter(torch.zeros(1))
    config = OptimizerConfig(
        learning_rate=arguments["lr"],
        min_learning_rate=arguments["min_lr"],
        epochs=arguments["epochs"],
        warmup_epochs=arguments["warmup_epochs"],
    )
    optimizer, scheduler = build_optimizer([parameter], config)
    found = []
    for _ in expected:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-18)


@pytest.mark.parametrize(("epochs", "warmup_epochs"), [(1, 0), (2, 1), (7, 3), (500, 10)])
def test_learning_rate_of_a_run_of_any_length(epochs, warmup_epochs):
    rates = [
        learning_rate(epoch, peak=1e-3, floor=1e-5, epochs=epochs, warmup_epochs=warmup_epochs)
        for epoch in range(epochs + 1)
    ]
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-5)
    assert rates[:warmup_epochs] == sorted(rates[:warmup_epochs])
    assert rates[warmup_epochs:] == sorted(rates[warmup_epochs:], reverse=True)


def test_optimizer_settings_are_the_published_ones():
    planner = tiny("ddim")
    optimizer, _ = build_optimizer(planner.parameters(), OptimizerConfig(epochs=200))
    (group,) = optimizer.param_groups
    assert (group["initial_lr"], group["weight_decay"], group["betas"]) == (1e-4, 1e-4, (0.9, 0.95))
    assert not any(p is planner.eta.eta_logit for p in group["params"])


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_run_inside_its_warm_up(epochs):
    rates = [learning_rate(epoch, peak=3.0, floor=0.0, epochs=epochs, warmup_epochs=3) for epoch in range(5)]
    assert rates == [1.0, 2.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize("epochs", [None, 0])
def test_unknown_number_of_epochs_is_refused(epochs):
    with pytest.raises(InvalidSetting, match="trainer.params.max_epochs"):
        build_optimizer([torch.nn.Parameter(torch.zeros(1))], OptimizerConfig(epochs=epochs))


def test_nothing_to_train_is_refused():
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    with pytest.raises(ValueError, match="no parameter is trainable"):
        build_optimizer([frozen], OptimizerConfig(epochs=3))
