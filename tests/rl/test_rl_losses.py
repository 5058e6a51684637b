from __future__ import annotations

import pytest
import torch

from navsim_recogdrive.rl.losses import gaussian_kl, policy_loss, scene_mean, step_discounts

ALL = torch.ones(2, dtype=torch.bool)


def test_the_last_step_counts_most():
    torch.testing.assert_close(step_discounts(4, 0.5, torch.device("cpu")), torch.tensor([0.125, 0.25, 0.5, 1.0]))


def test_policy_loss_by_hand():
    log_prob = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    loss = policy_loss(log_prob, torch.tensor([[1.0, -1.0]]), ALL[:1], discount=0.5)
    assert loss.item() == pytest.approx(-(0.5 * 1 + 2 - 0.5 * 3 - 4) / 4)


def test_scenes_that_are_not_valid_change_neither_loss_nor_gradient():
    log_prob = torch.randn(2, 4, 5, requires_grad=True)
    advantages = torch.randn(2, 4)
    loss = policy_loss(log_prob, advantages, torch.tensor([True, False]), discount=0.6)
    torch.testing.assert_close(loss, policy_loss(log_prob[:1], advantages[:1], ALL[:1], discount=0.6))
    loss.backward()
    assert log_prob.grad is not None
    assert (log_prob.grad[1] == 0).all()
    assert (log_prob.grad[0] != 0).all()


def test_without_valid_scenes_the_loss_is_zero_and_connected():
    values = torch.randn(2, 3, requires_grad=True)
    loss = scene_mean(values, ~ALL)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(values.grad, torch.zeros(2, 3))


def test_fresh_rollouts_have_the_plain_gradient():
    log_prob = torch.randn(2, 4, 5, requires_grad=True)
    advantages = torch.randn(2, 4)
    plain = torch.autograd.grad(policy_loss(log_prob, advantages, ALL, discount=0.6), log_prob)[0]
    ratio = policy_loss(log_prob, advantages, ALL, discount=0.6, old_log_prob=log_prob.detach(), ratio_clip=0.2)
    torch.testing.assert_close(torch.autograd.grad(ratio, log_prob)[0], plain)


@pytest.mark.parametrize(
    ("advantage", "change", "moves"),
    [(1.0, 0.5, False), (1.0, -0.5, True), (-1.0, 0.5, True), (-1.0, -0.5, False), (1.0, 0.1, True)],
)
def test_clipping_stops_what_has_gone_far_enough(advantage, change, moves):
    old = torch.zeros(1, 1, 1)
    new = torch.full((1, 1, 1), change, requires_grad=True)
    loss = policy_loss(new, torch.full((1, 1), advantage), ALL[:1], discount=1.0, old_log_prob=old, ratio_clip=0.2)
    loss.backward()
    assert (new.grad.item() != 0) == moves


def test_ratio_and_clip_come_together():
    with pytest.raises(ValueError, match="together"):
        policy_loss(torch.zeros(1, 1, 1), torch.zeros(1, 1), ALL[:1], discount=1.0, ratio_clip=0.2)


def test_divergence_is_torchs():
    mean, other, std = torch.randn(4, 8, 3), torch.randn(4, 8, 3), torch.tensor(0.3)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(other, std))
    torch.testing.assert_close(gaussian_kl(mean, other, std), expected)
