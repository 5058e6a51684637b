"""One scene of NAVSIM's data by its token, or by its log and frame, without a runner, a split's config or a map."""

from __future__ import annotations

import difflib
import mmap
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from navsim.planning.simulation.planner.pdm_planner.utils.pdm_geometry_utils import (
    convert_absolute_to_relative_se2_array,
)
from numpy.typing import NDArray
from nuplan.common.actor_state.state_representation import StateSE2
from pyquaternion import Quaternion

from navsim_recogdrive.agents.compat import AgentInput
from navsim_recogdrive.agents.observations import camera_config, observation_from_agent_input
from navsim_recogdrive.agents.pdm_batch import SUB_SCORES
from navsim_recogdrive.agents.reward_messages import ScoringSettings
from navsim_recogdrive.agents.scene_scoring import SceneScoring
from navsim_recogdrive.observation import HISTORY_POSES, HORIZON_POSES, Observation

LOGS, IMAGES = "navsim_logs", "sensor_blobs"
"""Folders of ``OPENSCENE_DATA_ROOT``; each has one folder per split."""

_PRESENT = HISTORY_POSES - 1
_NAMED = 3


class SceneNotFound(ValueError):
    """There is no such scene, or it cannot be planned from."""


@dataclass(frozen=True, eq=False)
class LogScene:
    """A scene of a recorded log.

    Attributes:
        data_root: ``OPENSCENE_DATA_ROOT``.
        split: folder of the log: ``mini``, ``trainval``, ``test``, ...
        log_name: of the log.
        frame: index of the present frame in the log.
        frames: the log's frames from 1.5 s before the present up to 4 s after it, or to the end of the log.
    """

    data_root: Path
    split: str
    log_name: str
    frame: int
    frames: list[dict[str, Any]] = field(repr=False)

    @property
    def token(self) -> str:
        """NAVSIM's token of the scene: the present frame's."""
        return str(self.frames[_PRESENT]["token"])

    def observation(self, cameras: tuple[str, ...] = ("front",)) -> Observation:
        """What an agent sees, as NAVSIM's runners hand it over.

        Raises:
            SceneNotFound: if an image of ``cameras`` is not on disk.
            InvalidObservation: if the scene lacks what a policy needs.
        """
        images = self.data_root / IMAGES / self.split
        try:
            agent_input = AgentInput.from_scene_dict_list(
                self.frames,
                images,
                num_history_frames=HISTORY_POSES,
                sensor_config=camera_config(cameras),
            )
        except FileNotFoundError as error:
            raise SceneNotFound(
                f"an image of scene {self.token} is missing: {error.filename} (images are looked for in {images})"
            ) from error
        return observation_from_agent_input(agent_input, cameras)

    @property
    def human_poses(self) -> NDArray[np.float32] | None:
        """``[8, 3]`` what the human drove next, present ego frame; ``None`` where the log ends before."""
        if len(self.frames) < HISTORY_POSES + HORIZON_POSES:
            return None
        poses = np.array(
            [
                [*frame["ego2global_translation"][:2], Quaternion(*frame["ego2global_rotation"]).yaw_pitch_roll[0]]
                for frame in self.frames[_PRESENT:]
            ],
            dtype=np.float64,
        )
        relative: NDArray[np.float64] = convert_absolute_to_relative_se2_array(StateSE2(*poses[0]), poses[1:])
        return relative.astype(np.float32)


def find_scene(
    data_root: Path,
    *,
    token: str | None = None,
    log: str | None = None,
    frame: int | None = None,
    split: str | None = None,
) -> LogScene:
    """Find a scene by token, or by log and frame; a token is looked for in the bytes of the logs, one after the other.

    Args:
        data_root: ``OPENSCENE_DATA_ROOT``, with ``navsim_logs`` and ``sensor_blobs``.
        token: of the scene.
        log: name of the log; with ``token``, where to look for it.
        frame: index of the present frame in the log, from 3 on (the history is before it); ``None``: 3.
        split: folder below ``navsim_logs``; ``None``: all.

    Raises:
        SceneNotFound: if there is none, or it has no history.
    """
    logs = _logs(data_root, log, split)
    if token is None:
        if log is None:
            raise ValueError("a scene is named by its token or its log")
        path = logs[0]
        return _cut(data_root, path, _read(path), _PRESENT if frame is None else frame)
    if frame is not None:
        raise ValueError("a token names its frame: leave out frame")
    for path in logs:
        if not _holds(path, token):
            continue
        frames = _read(path)
        for index, one in enumerate(frames):
            if one["token"] == token:
                return _cut(data_root, path, frames, index)
    raise SceneNotFound(
        f"no scene {token!r} in {len(logs)} log(s) of {data_root / LOGS / (split or '')}: a scene is "
        "named by the token of its present frame, as in NAVSIM's score tables; scenes of a second stage have no log"
    )


def score_plans(metric_cache: Path | str, token: str, trajectories: NDArray[np.float32]) -> dict[str, list[float]]:
    """NAVSIM's PDM score of trajectories ``[N, 8, 3]`` of one scene, and its sub-scores; each a list of N.

    In v1.x ``score`` is the PDM score; in v2.x that of one frame after the human filter, without comfort over two
    frames.

    Args:
        metric_cache: folder that ``run_metric_caching.py`` of the same NAVSIM version filled.
        token: of the scene.
        trajectories: poses in metres and radians, present ego frame.

    Raises:
        UnusableMetricCache: if the folder cannot be used.
        SceneNotFound: if the scene cannot be scored, for instance because it has no metric cache.
    """
    scores = SceneScoring(ScoringSettings(str(metric_cache), scenes_in_memory=1)).score(token, trajectories)
    if scores.rows is None:
        raise SceneNotFound(f"scene {token} cannot be scored: {scores.error}")
    return {name: row.tolist() for name, row in zip(("score", *SUB_SCORES), scores.rows, strict=True)}


def _logs(data_root: Path, log: str | None, split: str | None) -> list[Path]:
    root = data_root / LOGS
    if not root.is_dir():
        raise SceneNotFound(f"no folder {root}: set OPENSCENE_DATA_ROOT to the folder that holds {LOGS}")
    splits = sorted(path.name for path in root.iterdir() if path.is_dir())
    if split is not None and split not in splits:
        raise SceneNotFound(f"{root} has no split {split!r}; it has {', '.join(splits) or 'none'}")
    searched = splits if split is None else [split]
    if log is not None:
        found = [root / one / f"{log}.pkl" for one in searched if (root / one / f"{log}.pkl").is_file()]
        if found:
            return found[:1]
        names = [path.stem for one in searched for path in (root / one).glob("*.pkl")]
        near = difflib.get_close_matches(log, names, _NAMED, cutoff=0.3) or sorted(names)[:_NAMED]
        raise SceneNotFound(f"{root} has no log {log!r} among {len(names)}, such as {', '.join(near) or 'none'}")
    return [path for one in searched for path in sorted((root / one).glob("*.pkl"))]


def _holds(path: Path, token: str) -> bool:
    """Whether a file's bytes hold a token; a log is read so in a hundredth of the time that unpickling takes."""
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(token.encode()) >= 0


def _read(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        frames: list[dict[str, Any]] = pickle.load(file)  # as NAVSIM's own loader does
    return frames


def _cut(data_root: Path, path: Path, frames: list[dict[str, Any]], present: int) -> LogScene:
    if not _PRESENT <= present < len(frames):
        raise SceneNotFound(
            f"frame {present} of log {path.stem} cannot be planned from: it has frames 0 to {len(frames) - 1}, and the "
            f"first {_PRESENT} lack a history of 1.5 s"
        )
    return LogScene(
        data_root,
        path.parent.name,
        path.stem,
        present,
        frames[present - _PRESENT : present + HORIZON_POSES + 1],
    )
