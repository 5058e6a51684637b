"""Imitation, then reinforcement learning, through NAVSIM's own, unmodified runners."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
from observed_runs import Observed, batches, final
from runners import EVERY_FRAME, ON_CPU, Runners
from tiny_sizes import TINY_AGENT

from navsim_recogdrive.policy.preemption import EXIT_STATUS

pytestmark = pytest.mark.navsim

RL_AGENT = ["agent=recogdrive_2b_rl", *TINY_AGENT[1:]]
TRAINING = [
    *ON_CPU,
    "train_test_split=trainval",
    "+trainer.params.enable_progress_bar=false",
    "trainer.params.gradient_clip_val=1.0",
    "+trainer.params.log_every_n_steps=1",
]
FROM_CACHE = ["use_cache_without_dataset=true", "force_cache_computation=false"]
LOGGED_PER_STEP = {
    *("reward/mean", "reward/std", "reward/min", "reward/max", "reward/groups_without_spread"),
    *("reward/no_at_fault_collisions", "reward/ego_progress", "reward/scenes_not_scored"),
    *("loss/policy", "loss/behaviour_cloning", "loss/total", "kl", "log_prob/mean", "log_prob/clamped"),
    "gradient_norm",
    *(f"seconds/{part}" for part in ("condition", "rollout", "log_prob", "backward", "device")),
    *(f"seconds/{part}" for part in ("reward", "reward_wait", "step")),
}


class Prepared:
    """The feature cache, the metric cache and the imitation checkpoint that reinforcement learning starts from."""

    def __init__(self, runners: Runners, world: Path) -> None:
        index = json.loads((world / "world.json").read_text())
        self.splits = [f"{part}_logs=[{','.join(index[f'{part}_logs'])}]" for part in ("train", "val")]
        self.first_log: str = index["train_logs"][0]
        self.cache = runners.experiments / "training_cache"
        self.cache_option = f"cache_path={self.cache}"
        runners.run(
            "run_dataset_caching.py",
            *TINY_AGENT,
            "train_test_split=trainval",
            EVERY_FRAME,
            "worker=sequential",
            "experiment_name=caching",
            self.cache_option,
        )
        self.metric_cache = runners.cache_metrics("trainval", "metric_cache_train")
        runners.run(
            "run_training.py",
            *TINY_AGENT,
            *TRAINING,
            *FROM_CACHE,
            *self.splits,
            self.cache_option,
            "experiment_name=imitation",
            "trainer.params.max_epochs=1",
        )
        (self.imitation,) = (runners.experiments / "imitation").rglob("last.ckpt")

    def rl(self, *overrides: str) -> list[str]:
        """Arguments of a run."""
        return [
            *RL_AGENT,
            *TRAINING,
            *self.splits,
            self.cache_option,
            f"agent.metric_cache_path={self.metric_cache}",
            f"agent.reference_policy_checkpoint={self.imitation}",
            "agent.rl.group_size=4",
            *overrides,
        ]


@pytest.fixture(scope="module")
def prepared(runners: Runners, tiny_world: Path) -> Prepared:
    return Prepared(runners, tiny_world)


def logged(folder: Path) -> dict[str, list[float]]:
    """Values of the run's log by name, in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = folder.rglob("events.out.tfevents.*")
    log = EventAccumulator(str(events))
    log.Reload()
    return {name: [event.value for event in log.Scalars(name)] for name in log.Tags()["scalars"]}


def planner(checkpoint: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


def test_rl_chain(runners: Runners, prepared: Prepared) -> None:
    runners.run(
        "run_training.py",
        *prepared.rl(*FROM_CACHE),
        "experiment_name=rl",
        "trainer.params.max_epochs=2",
        "trainer.params.limit_val_batches=1",
        "agent.reward.workers=1",
        "agent.ema.decay=0.9",
    )
    (last,) = (runners.experiments / "rl").rglob("last.ckpt")
    assert list(last.parent.glob("best-*.ckpt"))
    before, after = planner(prepared.imitation), planner(last)
    assert set(after) == set(before), "neither the reference policy nor the reward is in the checkpoint"
    assert any(not torch.equal(before[name], after[name]) for name in before)
    raw = torch.load(last, weights_only=True)["current_model_state"]
    assert set(raw) == set(after)
    assert any(not torch.equal(raw[name], after[name]) for name in raw), "the average of two epochs' updates"

    log = logged(runners.experiments / "rl")
    steps = math.ceil(14 / 4)  # per epoch
    for name in LOGGED_PER_STEP:
        assert len(log[f"train/{name}"]) == 2 * steps, name
        assert len(log[f"train/{name}_epoch"]) == 2, name
    for low, mean, high in zip(*(log[f"train/reward/{name}"] for name in ("min", "mean", "max")), strict=True):
        assert 0 <= low <= mean <= high <= 1
    assert set(log["train/reward/scenes_not_scored"]) == {0.0}
    for name, of in (("mean", lambda values: sum(values) / steps), ("min", min), ("max", max)):
        values = log[f"train/reward/{name}"]
        expected = [of(values[:steps]), of(values[steps:])]
        assert log[f"train/reward/{name}_epoch"] == pytest.approx(expected, rel=1e-5)
    assert log["val/scored_scenes"] == [4.0, 4.0], "one batch in each epoch"
    assert log["val/loss_epoch"] == pytest.approx([-score for score in log["val/score_stochastic"]], abs=1e-6)
    assert all(0 <= score <= 1 for score in log["val/score_deterministic"])
    assert not reward_workers(runners), "they end with the run"

    runners.cache_metrics()
    tables = [
        runners.score([f"agent={name}", *TINY_AGENT[1:], f"agent.checkpoint_path={last}"], f"score_{name}")
        for name in ("recogdrive_2b", "recogdrive_2b_rl")
    ]
    scores = [dict(zip(table["token"].astype(str), table["score"], strict=True)) for table in tables]
    assert len(scores[0]) > 5
    assert scores[0] == scores[1]


def reward_workers(runners: Runners) -> list[psutil.Process]:
    """Processes of the reward that belong to this test's runners."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if "reward_worker" in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return [process for process in found if process.info["cwd"] == str(runners._cwd)]


def test_two_ranks_with_accumulation_bf16_and_missing_metric_caches(
    runners: Runners, prepared: Prepared, tmp_path: Path
) -> None:
    """From logs, not from the cache alone; one training scene has no metric cache."""
    metric_cache = tmp_path / "metric_cache"
    shutil.copytree(prepared.metric_cache, metric_cache)
    token = sorted(path.name for path in (prepared.cache / prepared.first_log).iterdir())[0]
    (path,) = metric_cache.glob(f"*/*/{token}/metric_cache.pkl")
    # The table names files by absolute path: of the copy now.
    for table in (metric_cache / "metadata").glob("*.csv"):
        table.write_text(table.read_text().replace(str(prepared.metric_cache), str(metric_cache)))
    path.unlink()
    arguments = prepared.rl(
        "use_cache_without_dataset=false",
        "force_cache_computation=false",
        EVERY_FRAME,
        "trainer.params.max_epochs=1",
        "trainer.params.precision=bf16-mixed",
        "trainer.params.strategy=ddp",
        "trainer.params.accumulate_grad_batches=2",
        "+trainer.params.devices=2",
        "dataloader.params.batch_size=2",
        "agent.reward.workers=1",
        f"agent.metric_cache_path={metric_cache}",
        "agent.missing_metric_caches=skip",
        "agent.resume=auto",
    )
    two_ranks = Observed(runners, 2, arguments)
    whole = two_ranks.train("two_ranks")
    output = two_ranks.output
    assert output.count(f"training: 1 of 14 scenes have no metric cache in {metric_cache}: {token}") == 1, "by one rank"
    log = logged(runners.experiments / "two_ranks")
    # 14 scenes, batches of 2 on two ranks: 16 places, in one or two of which the scene without reward stands.
    (not_scored,) = log["train/reward/scenes_not_scored_epoch"]
    assert not_scored in (pytest.approx(1 / 16), pytest.approx(2 / 16))
    assert len(log["train/gradient_norm"]) == 2, "four batches, two of them per update"
    assert log["val/scored_scenes"] == [8.0], "7 scenes, and one twice because ranks get equally many"
    (last,) = (runners.experiments / "two_ranks").rglob("last.ckpt")
    assert all(torch.isfinite(value).all() for name, value in planner(last).items() if "eta" not in name)

    assert final(whole[0]) == final(whole[1]), "both ranks hold the same weights"
    seen = Counter(token for notes in whole for batch in batches(notes) for token in batch["tokens"])
    assert len(seen) == seen.total() == 14, "every scene once"

    # One rank alone is asked to stop, in the middle of a step and while gradients accumulate.
    stopped = two_ranks.train("stopped", signal="1:1:SIGTERM")
    for notes in stopped:
        assert final(notes) == {"exit": EXIT_STATUS, "step": 1}, "both, after the same update"
    resumed = two_ranks.train("stopped")
    for rank in range(2):
        assert batches(stopped[rank]) + batches(resumed[rank]) == batches(whole[rank])
        assert final(resumed[rank]) == final(whole[rank])
    assert not reward_workers(runners)
