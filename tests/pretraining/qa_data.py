"""Question-answer data for tests: short trajectory questions in the byte VLM's prompt profile, and their scenes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from byte_vlm import write_short_profile
from PIL import Image

from navsim_recogdrive.observation import Observation
from navsim_recogdrive.vlm.conversation import ConversationWriter

SAMPLES = 16


def past_poses(index: int) -> np.ndarray:
    poses = np.zeros((4, 3))
    poses[:, 0] = np.arange(-3, 1) * 0.1 * index
    return poses


def future_poses(index: int) -> np.ndarray:
    """What each scene is to be answered with; all different."""
    steps = np.arange(1, 9)
    return np.stack([steps * (0.5 + 0.1 * index), 0.02 * (1 + index) * steps, 0.02 * steps], axis=1).round(2)


def front_image(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 255, (54, 96, 3), dtype=np.uint8)


def observation(index: int) -> Observation:
    return Observation(
        front_image=front_image(index),
        past_poses=past_poses(index),
        velocity=np.zeros(2),
        acceleration=np.zeros(2),
        driving_command=np.eye(4)[index % 4],
    )


def trajectory_records(profile_path: Path, count: int = SAMPLES) -> list[dict[str, Any]]:
    writer = ConversationWriter.of(write_short_profile(profile_path), None)
    records = []
    for index in range(count):
        said = writer.write(past_poses(index), index % 4, future_poses(index))
        turns = (("system", said.system), ("human", said.question), ("gpt", said.answer))
        records.append(
            {
                "id": f"scene {index}",
                "image": f"images/{index}.png",
                "width": 96,
                "height": 54,
                "conversations": [{"from": speaker, "value": text} for speaker, text in turns],
            }
        )
    return records


def write_data(folder: Path, records: Sequence[dict[str, Any] | str], **entry: Any) -> Path:
    """Images, annotation and a mixture of one data set in ``folder``; strings are written as they are."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in range(SAMPLES):
        Image.fromarray(front_image(index)).save(folder / "images" / f"{index}.png")
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    (folder / "qa.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    mixture = folder / "mixture.json"
    mixture.write_text(json.dumps({"qa": {"root": ".", "annotation": "qa.jsonl", **entry}}))
    return mixture


def talk(*texts: str, image: str | list[str] | None = None, **more: Any) -> dict[str, Any]:
    """A record whose turns are human and gpt in turn."""
    turns = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]
    return {**({} if image is None else {"image": image}), **more, "conversations": turns}
