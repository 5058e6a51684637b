"""Pictures in the log of a training run: which scenes, when, and where they can be seen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, Dataset

from navsim_recogdrive.policy import tracking
from navsim_recogdrive.policy.callbacks import ValidationDisplacement
from navsim_recogdrive.policy.configuration import PolicyConfig
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.policy.tracking import WandbMissing, WandbTracking
from navsim_recogdrive.policy.training_configuration import PicturesConfig, WandbConfig
from navsim_recogdrive.rl.objective import DrawnGroups, RLObjective
from navsim_recogdrive.viz import training_pictures as room
from navsim_recogdrive.viz.scene_view import SceneView
from navsim_recogdrive.viz.training_pictures import FOLDER, TrainingPictures, training_pictures

HUMAN = torch.stack([torch.arange(1.0, 9.0) * 2, torch.zeros(8), torch.zeros(8)], dim=1)


class Scenes(Dataset[Any]):
    """Scene ``N`` is planned N decimetres beside the human."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"past_poses": torch.zeros(4, 3), "number": index}, {"trajectory": HUMAN, "token": f"scene{index}"}


class Model(pl.LightningModule):
    """Trains one number; its plans are made up."""

    def __init__(self, displacement: ValidationDisplacement) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self._displacement = displacement

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight**2

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        features, targets = batch
        offset = features["number"][:, None, None] * torch.tensor([0.0, 0.1, 0.0])
        self._displacement.update(targets["trajectory"] + offset, targets["trajectory"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(
    folder: Path, config: PicturesConfig, epochs: int, *more: pl.Callback, logger: Any = None, scenes: int = 10
) -> pl.Trainer:
    displacement = ValidationDisplacement()
    callbacks = [displacement, *training_pictures(config, displacement), *more]
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(folder) if logger is None else logger,
        default_root_dir=folder,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        log_every_n_steps=1,
    )
    trainer.fit(Model(displacement), DataLoader(Scenes(2), batch_size=2), DataLoader(Scenes(scenes), batch_size=4))
    return trainer


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[SceneView]]:
    """The views of every picture, which are drawn small."""
    found: list[list[SceneView]] = []
    draw_grid = room.draw_grid

    def draw(views: Any, columns: int, side: int, **settings: Any) -> Any:
        found.append(list(views))
        return draw_grid(views, columns, 80, **settings)

    monkeypatch.setattr(room, "draw_grid", draw)
    return found


def test_pictures_are_in_tensorboard_and_in_the_runs_folder(tmp_path: Path, drawn: list[list[SceneView]]) -> None:
    trainer = train(tmp_path, PicturesConfig(every_epochs=2, scenes=3), epochs=5)
    files = sorted(path.name for path in (Path(trainer.log_dir) / FOLDER).iterdir())
    assert files == [f"val_plans.{epoch:04d}.png" for epoch in (0, 1, 3, 4)]
    log = EventAccumulator(trainer.log_dir)
    log.Reload()
    images = log.Images("val/plans")
    assert [image.step for image in images] == [1, 2, 4, 5]
    with Image.open(Path(trainer.log_dir) / FOLDER / files[-1]) as picture:
        assert (images[-1].width, images[-1].height) == picture.size


def test_the_same_scenes_from_all_over_the_split(tmp_path: Path, drawn: list[list[SceneView]]) -> None:
    train(tmp_path, PicturesConfig(every_epochs=1, scenes=4), epochs=2, scenes=12)
    first, second = ([view.title for view in views] for views in drawn)
    assert first == second
    assert len(first) == 4
    assert {int(title.removeprefix("scene")) // 4 for title in first} == {0, 1, 2}, "of every batch"
    for view in drawn[0]:
        number = int(view.title.removeprefix("scene"))
        np.testing.assert_allclose(view.plans[0].poses - view.human, np.tile([0, 0.1 * number, 0], (8, 1)), atol=1e-6)
        assert view.subtitle == f"ADE {0.1 * number:.2f} m"


def test_fewer_scenes_than_asked_for(tmp_path: Path, drawn: list[list[SceneView]]) -> None:
    train(tmp_path, PicturesConfig(every_epochs=1, scenes=8), epochs=1, scenes=3)
    assert [view.title for view in drawn[0]] == ["scene0", "scene1", "scene2"]


def test_no_pictures(tmp_path: Path, drawn: list[list[SceneView]]) -> None:
    train(tmp_path, PicturesConfig(every_epochs=0), epochs=1)
    assert not drawn
    assert training_pictures(PicturesConfig(every_epochs=0), ValidationDisplacement()) == []


def test_a_logger_without_pictures_leaves_the_files(tmp_path: Path, drawn: list[list[SceneView]]) -> None:
    trainer = train(tmp_path, PicturesConfig(), epochs=1, logger=CSVLogger(tmp_path))
    assert [path.name for path in (Path(trainer.log_dir) / FOLDER).iterdir()] == ["val_plans.0000.png"]


def test_groups_are_coloured_by_their_reward(tmp_path: Path, drawn: list[list[SceneView]]) -> None:
    """Of the first batch of an epoch, scenes that could be scored alone."""
    rng = np.random.default_rng(0)
    groups = DrawnGroups(
        rng.normal(size=(3, 4, 8, 3)).astype(np.float32),
        np.array([[0, 0.1, 0.2, 0.3], [np.nan] * 4, [0.5, 0.5, 1, 1]], dtype=np.float32),
        np.array([True, False, True]),
    )
    objective = object.__new__(RLObjective)
    objective.latest = groups
    callback = TrainingPictures(PicturesConfig(every_epochs=3), ValidationDisplacement(), objective)
    batch = ({"past_poses": torch.zeros(3, 4, 3)}, {"token": ["a", "b", "c"]})
    trainer: Any = SimpleNamespace(
        log_dir=str(tmp_path), loggers=[], is_global_zero=True, current_epoch=2, max_epochs=9, global_step=7
    )
    callback.on_fit_start(trainer, None)  # type: ignore[arg-type]
    for index in (0, 1):
        callback.on_train_batch_end(trainer, None, None, batch, index)  # type: ignore[arg-type]
    trainer.current_epoch = 3
    callback.on_train_batch_end(trainer, None, None, batch, 0)  # type: ignore[arg-type]
    assert len(drawn) == 1
    assert [view.title for view in drawn[0]] == ["a", "c"]
    np.testing.assert_allclose(drawn[0][1].samples.rewards, groups.scores[2])
    np.testing.assert_allclose(drawn[0][1].samples.poses, groups.trajectories[2], rtol=1e-6)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["train_groups.0002.png"]


def test_weights_and_biases(tmp_path: Path, drawn: list[list[SceneView]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: what would be sent lies on disk, scalars and pictures beside TensorBoard's."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracking_callback = WandbTracking(WandbConfig(project="driving", name="try"))
    trainer = train(tmp_path, PicturesConfig(scenes=2), 1, tracking_callback)
    import wandb

    run = wandb.run
    assert run is not None
    assert (run.project, run.name) == ("driving", "try")
    media = list(Path(run.dir).rglob("media/images/val/plans_*.png"))
    wandb.finish()
    assert len(media) == 1
    assert isinstance(trainer.loggers[0], TensorBoardLogger), "the first decides where checkpoints lie"
    assert len(trainer.loggers) == 2
    assert list(Path(trainer.log_dir).glob("events*"))
    assert [path.name for path in (Path(trainer.log_dir) / FOLDER).iterdir()] == ["val_plans.0000.png"]
    tracking_callback.setup(trainer, trainer.lightning_module, "fit")
    assert len(trainer.loggers) == 2, "once"


def test_weights_and_biases_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(WandbMissing, match=r"agent.wandb.project=x needs .* pip install -e '\.\[wandb\]'"):
        WandbTracking(WandbConfig(project="x"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pictures": {"every_epochs": -1}}, "pictures.every_epochs must be a whole number of at least 0, found -1"),
        ({"pictures": {"scenes": 0}}, "pictures.scenes must be a whole number of at least 1, found 0"),
        ({"pictures": {"every_epochs": 0, "scenes": 4}}, "cannot act with agent.pictures.every_epochs=0"),
        ({"pictures": {"often": 1}}, "unknown setting.* often in 'pictures'; it has: every_epochs, scenes"),
        ({"wandb": {"project": 3}}, "wandb.project must be a text, or null, found 3"),
        ({"wandb": {"name": "try"}}, "agent.wandb.name cannot act without agent.wandb.project"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        PolicyConfig.from_mapping(settings)


def test_settings_of_a_run() -> None:
    config = PolicyConfig.from_mapping({"pictures": {"every_epochs": 3}, "wandb": {"project": "driving"}})
    assert config.pictures == PicturesConfig(3, 8)
    assert config.wandb == WandbConfig("driving", None)
