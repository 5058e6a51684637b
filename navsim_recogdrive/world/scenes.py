"""Reads scenes of a world back without NAVSIM, with the very numbers NAVSIM's SceneLoader would hand over."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from navsim_recogdrive.observation import HISTORY_POSES, HORIZON_POSES, Observation
from navsim_recogdrive.world.generate import read_index
from navsim_recogdrive.world.geometry import FloatArray
from navsim_recogdrive.world.openscene import log_path
from navsim_recogdrive.world.presets import SCENE_FRAMES

FRONT_CAMERA = "CAM_F0"


class SceneError(ValueError):
    """Scenes that cannot be loaded: a wrong split or log name, or an image that is missing."""


@dataclass(frozen=True, eq=False)
class WorldScene:
    """One scene: 4 frames of history (the last is the present) and 10 of future, 0.5 s apart.

    Attributes:
        root: folder of the world.
        split: ``trainval`` or ``test``.
        frames: the 14 frames of the log, as NAVSIM reads them.
    """

    root: Path
    split: str
    frames: list[dict[str, Any]] = field(repr=False)

    @property
    def present(self) -> dict[str, Any]:
        """The present frame."""
        return self.frames[HISTORY_POSES - 1]

    @property
    def token(self) -> str:
        """NAVSIM's token of the scene: the present frame's."""
        return str(self.present["token"])

    @property
    def log_name(self) -> str:
        """Name of the log the scene is cut from."""
        return str(self.present["log_name"])

    @property
    def location(self) -> str:
        """Name of the place, one of nuPlan's map locations."""
        return str(self.present["map_location"])

    @property
    def image_path(self) -> Path:
        """The present front-camera image."""
        return self.root / "sensor_blobs" / self.split / self.present["cams"][FRONT_CAMERA]["data_path"]

    def observation(self, with_image: bool = True) -> Observation:
        """What a policy sees: the numbers of NAVSIM's ``AgentInput`` and its decoded RGB image.

        Raises:
            SceneError: if the image is missing or cannot be decoded.
        """
        poses = self.global_poses(0, HISTORY_POSES)
        motion = self.present["ego_dynamic_state"]
        return Observation(
            self._image() if with_image else None,
            relative_poses(poses, poses[-1]).astype(np.float32),
            np.array(motion[:2], dtype=np.float32),
            np.array(motion[2:], dtype=np.float32),
            np.array(self.present["driving_command"], dtype=np.float32),
        )

    def future_poses(self) -> NDArray[np.float32]:
        """``[8, 3]`` the expert's next 4 s in the present ego frame: the training target."""
        poses = self.global_poses(HISTORY_POSES - 1, HISTORY_POSES + HORIZON_POSES)
        return relative_poses(poses[1:], poses[0]).astype(np.float32)

    def global_poses(self, start: int, stop: int) -> FloatArray:
        """``[stop - start, 3]`` global rear-axle poses of frames ``start`` to ``stop``."""
        return np.array([global_pose(frame) for frame in self.frames[start:stop]], dtype=np.float64)

    def _image(self) -> NDArray[np.uint8]:
        try:
            return np.array(Image.open(self.image_path))  # Pillow, as NAVSIM: other JPEG decoders differ by a few steps
        except OSError as error:
            raise SceneError(
                f"image {self.image_path} of scene {self.token} is missing or broken; make the world anew"
            ) from error


def global_pose(frame: dict[str, Any]) -> FloatArray:
    """``[3]`` global rear-axle pose of a log frame."""
    w, x, y, z = frame["ego2global_rotation"]
    yaw = np.arctan2(2 * (w * z - x * y), 1 - 2 * (y**2 + z**2))
    translation = frame["ego2global_translation"]
    return np.array([translation[0], translation[1], yaw], dtype=np.float64)


def relative_poses(poses: FloatArray, origin: FloatArray) -> FloatArray:
    """Global ``poses [N, 3]`` in the frame of ``origin [3]``.

    The order of operations is NAVSIM's, so that the results agree to the last bit.
    """
    theta = -origin[2]
    rotation = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    relative = poses - origin[None]
    relative[..., :2] = relative[..., :2] @ rotation.T
    relative[:, 2] = np.arctan2(np.sin(relative[:, 2]), np.cos(relative[:, 2]))
    return relative


def load_scenes(
    root: str | Path, split: str, log_names: list[str] | None = None, frame_interval: int = 1
) -> list[WorldScene]:
    """All scenes of a split, log by log in order of their names; the windows are those of NAVSIM's scene filter.

    Args:
        root: folder of a finished world.
        split: ``trainval`` or ``test``; ``train`` and ``val`` name the two parts of ``trainval``.
        log_names: only these logs; ``None`` means all of the split.
        frame_interval: frames between the starts of two scenes (1: as many as possible; 14: no overlap).

    Raises:
        SceneError: for an unknown split, a log the split does not have, or a ``frame_interval`` below 1.
        WorldFolderError: if ``root`` holds no finished world.
    """
    root = Path(root)
    index = read_index(root)
    logs = {part: list(index[f"{part}_logs"]) for part in ("train", "val", "test")}
    logs["trainval"] = logs["train"] + logs["val"]
    if split not in logs:
        raise SceneError(f"split must be one of trainval, train, val, test, found {split!r}")
    if frame_interval < 1:
        raise SceneError(f"frame_interval must be at least 1, found {frame_interval}")
    unknown = sorted(set(log_names or ()) - set(logs[split]))
    if unknown:
        raise SceneError(f"split {split} of {root} has no log {unknown[0]!r}; its logs are {logs[split]}")
    folder = "test" if split == "test" else "trainval"
    scenes = []
    for name in sorted(logs[split] if log_names is None else log_names):
        frames = pickle.loads(log_path(root, folder, name).read_bytes())
        for start in range(0, len(frames) - SCENE_FRAMES + 1, frame_interval):
            window = frames[start : start + SCENE_FRAMES]
            if window[HISTORY_POSES - 1]["roadblock_ids"]:
                scenes.append(WorldScene(root, folder, window))
    return scenes
