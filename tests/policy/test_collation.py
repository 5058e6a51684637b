from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from interrupted_training import Model, Scenes
from random_observation import random_observation
from tiny_sizes import TINY_HIDDEN_LENGTH
from torch.utils.data import DataLoader, Dataset, default_collate

from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.collation import SceneCollate, UnequalScenes, name_unequal_scenes
from navsim_recogdrive.policy.configuration import VLMConfig
from navsim_recogdrive.policy.data_order import OrderedScenes
from navsim_recogdrive.policy.image_features import scenes_of, tile_features
from navsim_recogdrive.vlm.tiny_checkpoint import write_tiny_checkpoint


class _Images(Dataset[Any]):
    """Scenes in joint mode with a Qwen VLM, whose last image has another size."""

    def __init__(self, path: Path, scenes: int) -> None:
        self.backbone = SharedBackbone(
            VLMConfig(path=str(path), dtype="float32", hidden_length=TINY_HIDDEN_LENGTH), "cpu"
        )
        sizes = [(112, 200)] * (scenes - 1) + [(200, 112)]
        self.observations = [random_observation(seed, size) for seed, size in enumerate(sizes)]

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return tile_features(self.backbone.preparation, self.observations[index]), {"token": f"scene{index}"}


def test_scenes_with_images_of_another_size_are_named(tmp_path: Path) -> None:
    scenes = _Images(write_tiny_checkpoint(tmp_path / "qwen", layout="qwen2_5_vl", hidden_size=32), 7)
    loader = DataLoader(scenes, batch_size=7)
    name_unequal_scenes(loader)
    with pytest.raises(UnequalScenes) as error:
        next(iter(loader))
    found = str(error.value)
    assert "the scenes of a batch have unequal features: image_tiles: [1," in found
    assert "in scenes scene0, scene1, scene2, scene3 and 2 more, [1," in found
    assert "in scene scene6. The cameras' images must have one size" in found
    assert found.endswith("dataloader.params.batch_size=1")

    one_by_one = DataLoader(scenes, batch_size=1)
    name_unequal_scenes(one_by_one)
    for index, (features, _) in enumerate(one_by_one):  # the advice that the error gives
        expected = scenes.backbone.hidden_states([scenes.observations[index]])
        torch.testing.assert_close(scenes.backbone.hidden_states_of(scenes_of(features)), expected)


class _OneLonger(Scenes):
    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {"x": torch.zeros(3 + (index == 5))}, super().__getitem__(index)[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_run_names_them(workers: int) -> None:
    scenes = _OneLonger(8)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[OrderedScenes()],
    )
    with pytest.raises(UnequalScenes, match=rf"features: x: .*\[4\] in scene {scenes.tokens[5]}"):
        trainer.fit(Model(), DataLoader(scenes, batch_size=8, shuffle=True, num_workers=workers))


def test_everything_that_differs_is_named() -> None:
    def scene(token: str, poses: int = 8, **features: torch.Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        return features, {"trajectory": torch.zeros(poses, 3), "token": token}

    one, two = torch.zeros(1), torch.zeros(2)
    collate = SceneCollate(default_collate)
    with pytest.raises(UnequalScenes) as error:
        collate([scene("a", x=one, y=one), scene("b", 7, x=two, y=one), scene("c", x=one)])
    found = str(error.value)
    assert "features: x: [1] in scenes a, c, [2] in scene b; y: [1] in scenes a, b, missing in scene c; " in found
    assert "; trajectory: [8, 3] in scenes a, c, [7, 3] in scene b. Where the scenes come from a cache" in found
    assert "images" not in found, "of image tiles alone"
    with pytest.raises(UnequalScenes, match=r"features: y: \[1\] in scene a, missing in scene b\. Where"):  # a KeyError
        collate([scene("a", x=one, y=one), scene("b", x=one)])
    with pytest.raises(UnequalScenes, match="one size: .*batch_size=1. Where the scenes come from a cache"):
        collate([scene("a", image_tiles=one, x=one), scene("b", image_tiles=two, x=two)])


def test_other_errors_are_left_as_they_are() -> None:
    def fail(_: list[Any]) -> Any:
        raise RuntimeError("something else")

    for samples in ([({"x": torch.zeros(1)}, {"token": "a"})] * 2, [torch.zeros(1), torch.zeros(2)]):
        with pytest.raises(RuntimeError, match="^something else$"):
            SceneCollate(fail)(samples)
    loader = DataLoader(Scenes(2))
    name_unequal_scenes(loader)
    collate = loader.collate_fn
    name_unequal_scenes(loader)
    assert loader.collate_fn is collate
