"""What is planned for: an observation, and what else is known of its scene."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.observation import DRIVING_COMMANDS, HISTORY_POSES, InvalidObservation, Observation
from navsim_recogdrive.policy.observation_input import make_observation

if TYPE_CHECKING:
    from navsim_recogdrive.viz.scene_view import SceneView

DEFAULT_SPEED_MPS = 5.0
"""Speed of a car of which nothing is said but its image."""


@dataclass(frozen=True, eq=False)
class Situation:
    """One scene to plan for.

    Attributes:
        observation: what the policy sees.
        title: names the scene.
        notes: what was assumed.
        human: ``[8, 3]`` what the human drove, or ``None``.
        token: NAVSIM's, ``None`` for an image.
        view: draws the scene without plans; called only for a picture.
        score: PDM scores of ``[N, 8, 3]`` by name, or ``None`` without a metric cache.
    """

    observation: Observation
    title: str
    view: Callable[[], SceneView]
    notes: tuple[str, ...] = ()
    human: NDArray[np.float32] | None = None
    token: str | None = None
    score: Callable[[NDArray[np.float32]], dict[str, list[float]]] | None = None


def from_image(
    images: dict[str, Path],
    history: NDArray[np.float64] | None,
    ego_status: Sequence[float] | None,
    speed: float | None,
    command: str,
) -> Situation:
    """A situation of one's own.

    Args:
        images: by camera; ``front`` among them.
        history: ``[4, 3]``, or ``None``.
        ego_status: 2 or 4 numbers, or ``None``.
        speed: m/s, or ``None``.
        command: driving command by name.

    Raises:
        InvalidObservation, FileNotFoundError: as :func:`make_observation`.
    """
    notes = []
    if history is None:
        if ego_status is None and speed is None:
            speed = DEFAULT_SPEED_MPS
        going = speed if ego_status is None else float(np.hypot(ego_status[0], ego_status[1]))
        notes.append(f"history: not given, constant velocity of {going:g} m/s assumed")
    elif ego_status is None and speed is None:
        notes.append("velocity and acceleration: not given, those of the history")
    observation = make_observation(
        images["front"],
        history,
        ego_status,
        command,
        speed=speed,
        front_left_image=images.get("front_left"),
        front_right_image=images.get("front_right"),
    )
    title = images["front"].name
    return Situation(observation, title, lambda: _image_view(observation, title), tuple(notes))


def from_navsim(
    data_root: Path,
    cameras: tuple[str, ...],
    *,
    token: str | None,
    log: str | None,
    frame: int | None,
    split: str | None,
    command: str | None,
    metric_cache: Path | None,
) -> Situation:
    """A scene of NAVSIM's data, see :func:`navsim_recogdrive.agents.log_scene.find_scene`.

    Args:
        data_root: ``OPENSCENE_DATA_ROOT``.
        cameras: whose images the policy needs.
        token: of the scene.
        log: name of the log.
        frame: index of the present frame in it.
        split: folder below ``navsim_logs``.
        command: in place of the scene's own.
        metric_cache: folder of metric caches, to score plans.

    Raises:
        NavsimNotUsable: if NAVSIM is not installed.
        SceneNotFound: if there is no such scene.
        UnusableMetricCache: if the folder holds no metric caches, before anything is planned.
    """
    from navsim_recogdrive.agents import compat  # noqa: F401  first: it says in one sentence where NAVSIM is missing
    from navsim_recogdrive.agents.log_scene import find_scene, score_plans
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder
    from navsim_recogdrive.agents.scene_views import map_folder, scene_view

    scene = find_scene(data_root, token=token, log=log, frame=frame, split=split)
    observation = scene.observation(cameras)
    notes: list[str] = []

    def view() -> SceneView:
        drawn = scene_view(scene, map_folder(), cameras)
        return drawn if command is None else replace(drawn, subtitle=f"{notes[0]}   {scene.log_name}")

    if command is not None:
        own = DRIVING_COMMANDS[observation.command_index]
        one_hot = np.eye(len(DRIVING_COMMANDS), dtype=np.float32)[DRIVING_COMMANDS.index(command)]
        observation = replace(observation, driving_command=one_hot)
        notes.append(f"command: {command} in place of the scene's {own}")
    score = None
    if metric_cache is not None:
        MetricCacheFolder(metric_cache)
        folder = metric_cache

        def score(trajectories: NDArray[np.float32]) -> dict[str, list[float]]:
            return score_plans(folder, scene.token, trajectories)

    return Situation(
        observation,
        f"scene {scene.token} (frame {scene.frame} of {scene.log_name})",
        view,
        tuple(notes),
        scene.human_poses,
        scene.token,
        score,
    )


def read_history(words: Sequence[str]) -> NDArray[np.float64]:
    """The poses on a command line: a file (``.json``, ``.npy``, ``.csv``, ``.txt``), or 12 numbers.

    A JSON file holds a list of 4 poses, or an object with it under ``history``. A text file has a pose per line,
    numbers separated by commas or spaces.

    Raises:
        InvalidObservation: for anything else.
        FileNotFoundError: if there is no such file.
    """
    if len(words) == 1:
        return _history_of(Path(words[0]).expanduser())
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise InvalidObservation(f"--history takes a file or {3 * HISTORY_POSES} numbers: {error}") from None
    if len(numbers) != 3 * HISTORY_POSES:
        raise InvalidObservation(
            f"--history takes a file or {3 * HISTORY_POSES} numbers (x y heading, {HISTORY_POSES} times, oldest first)"
            f", found {len(numbers)}"
        )
    return np.array(numbers).reshape(HISTORY_POSES, 3)


def _history_of(path: Path) -> NDArray[np.float64]:
    if not path.is_file():
        raise FileNotFoundError(f"no file of poses at {path}")
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            content: Any = json.loads(text)
            return np.array(content["history"] if isinstance(content, dict) else content, dtype=np.float64)
        return np.array(
            [[float(word) for word in line.replace(",", " ").split()] for line in text.splitlines() if line]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidObservation(
            f"{path} holds no poses: expected {HISTORY_POSES} of (x, y, heading), as a .json list, a .npy array or "
            f"lines of text ({type(error).__name__}: {error})"
        ) from error


def _image_view(observation: Observation, title: str) -> SceneView:
    """The front image, with the calibration of nuPlan's front cameras, as that of the image is not known."""
    from navsim_recogdrive.viz.camera import nuplan_front_camera
    from navsim_recogdrive.viz.scene_view import SceneView

    assert observation.front_image is not None
    return SceneView(
        title=title,
        subtitle="camera as in nuPlan's cars",
        past_poses=observation.past_poses.astype(np.float64),
        camera=nuplan_front_camera(observation.front_image),
    )
