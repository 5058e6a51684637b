"""Joint mode through NAVSIM's own, unmodified runners: image tiles are cached, VLM and planner trained, and scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runners import EVERY_FRAME, ON_CPU, Runners
from tiny_sizes import TINY_AGENT

pytestmark = pytest.mark.navsim

JOINT = [*TINY_AGENT, "agent.cache_hidden_state=false"]
LORA = [*JOINT, "agent.vlm.training=lora", "agent.lora.rank=2"]
FULL = [*JOINT, "agent.vlm.training=full", "agent.vlm.gradient_checkpointing=true", "agent.vlm.dtype=bfloat16"]
FROM_CACHE = ["use_cache_without_dataset=true", "force_cache_computation=false"]
UNCACHED = ["cache_path=null", "force_cache_computation=false", EVERY_FRAME]


def _train(runners: Runners, world: Path, name: str, *overrides: str) -> Path:
    """Two steps per epoch on one log; the last checkpoint."""
    index = json.loads((world / "world.json").read_text())
    runners.run(
        "run_training.py",
        *ON_CPU,
        *(f"{part}_logs=[{index[f'{part}_logs'][0]}]" for part in ("train", "val")),
        "train_test_split=trainval",
        f"experiment_name={name}",
        "+trainer.params.enable_progress_bar=false",
        "agent.optimizer.warmup_epochs=0",
        *overrides,
    )
    (last,) = (runners.experiments / name).rglob("last.ckpt")
    return last


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {key: value for key, value in state.items() if key.startswith("agent.vlm.")}


def test_joint_chain(runners: Runners, tiny_world: Path) -> None:
    cache = f"cache_path={runners.experiments / 'tiles'}"
    runners.run(
        "run_dataset_caching.py",
        *JOINT,
        "train_test_split=trainval",
        EVERY_FRAME,
        "worker=sequential",
        "experiment_name=caching",
        cache,
    )
    files = list((runners.experiments / "tiles").glob("*/*/*.gz"))
    assert {path.stem for path in files} == {
        *("recogdrive_image_tiles", "recogdrive_ego", "recogdrive_trajectory", "recogdrive_token")
    }

    frozen = _train(runners, tiny_world, "frozen", *JOINT, *UNCACHED, "trainer.params.max_epochs=1")
    assert not _weights(frozen), "a frozen VLM must not be in the checkpoint"

    averaging = ["trainer.params.max_epochs=2", "agent.ema.decay=0.9"]
    lora = _train(runners, tiny_world, "lora", *LORA, cache, *FROM_CACHE, *averaging)
    adapters = _weights(lora)
    assert len(adapters) == 1 + 2 * 7 * 2, "its description, and A and B of seven layers in each of two decoder layers"
    moved = [value.abs().max() > 0 for key, value in adapters.items() if "lora_B" in key]  # they start at zero
    assert moved
    assert all(moved)
    raw = torch.load(lora, weights_only=True)["current_model_state"]
    assert adapters.keys() == {key for key in raw if key.startswith("agent.vlm.")}
    assert all(torch.equal(value, raw[key]) == key.endswith("_extra_state") for key, value in adapters.items())

    full = _train(runners, tiny_world, "full", *FULL, cache, *FROM_CACHE, "trainer.params.max_epochs=1")
    assert any("vision_tower" in key for key in _weights(full))
    assert full.stat().st_size > 5 * lora.stat().st_size

    runners.cache_metrics()
    table = runners.score([*TINY_AGENT, f"agent.checkpoint_path={lora}"], "score")
    scenes = table[~table["token"].astype(str).str.startswith("average")]
    assert len(scenes) > 5
    assert scenes["valid"].astype(bool).all()
    assert scenes["score"].between(0, 1).all()
