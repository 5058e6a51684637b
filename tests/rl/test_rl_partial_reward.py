"""A reward that leaves scenes out, and the callbacks of a run."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from navsim_recogdrive.rl.callbacks import CloseReward
from navsim_recogdrive.rl.partial_reward import PartialReward
from navsim_recogdrive.rl.reward import RewardResult


class Recorded:
    """Scores a scene by the number in its token; scene 9 cannot be scored."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.closed = 0

    def submit(self, tokens, trajectories):  # type: ignore[no-untyped-def]
        self.asked.append(list(tokens))
        numbers = np.array([float(token) for token in tokens], dtype=np.float32)
        scores = np.repeat(numbers[:, None], trajectories.shape[1], axis=1)
        errors = {"9": "no"} if "9" in tokens else {}
        self._result = RewardResult(scores, numbers != 9, {"half": scores / 2}, 0.5, errors)
        return self

    def result(self) -> RewardResult:
        return self._result

    def close(self) -> None:
        self.closed += 1


def test_scenes_left_out_are_not_asked_and_not_valid() -> None:
    inner = Recorded()
    reward = PartialReward(inner)
    trajectories = np.zeros((5, 3, 8, 3), dtype=np.float32)
    tokens = ["1", "2", "9", "3", "2"]
    assert reward.submit(tokens, trajectories).result() is inner.result()

    reward.leave_out(["2"], "gone")
    result = reward.submit(tokens, trajectories).result()
    assert inner.asked == [tokens, ["1", "9", "3"]]
    assert result.valid.tolist() == [True, False, False, True, False]
    assert result.scores[[0, 3]].tolist() == [[1.0] * 3, [3.0] * 3]
    assert np.isnan(result.scores[[1, 4]]).all()
    assert result.sub_scores["half"][3].tolist() == [1.5] * 3
    assert np.isnan(result.sub_scores["half"][1]).all()
    assert result.scores.dtype == result.sub_scores["half"].dtype == np.float32
    assert (result.seconds, result.errors) == (0.5, {"9": "no", "2": "gone"})

    none = reward.submit(["2"], trajectories[:1]).result()
    assert none.scores.shape == (1, 3)
    assert not none.valid.any()
    reward.close()
    assert inner.closed == 1


class Module(pl.LightningModule):
    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self._fails = fails

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self._fails:
            raise RuntimeError("a step that fails")
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("fails", [False, True])
def test_the_reward_ends_with_the_run(fails: bool, tmp_path) -> None:  # type: ignore[no-untyped-def]
    inner = Recorded()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[CloseReward(PartialReward(inner))],
    )
    loader: DataLoader[torch.Tensor] = DataLoader(torch.ones(2, 1))  # type: ignore[arg-type]
    if fails:
        with pytest.raises(RuntimeError, match="a step that fails"):
            trainer.fit(Module(fails), loader)
    else:
        trainer.fit(Module(fails), loader)
    assert inner.closed >= 1
