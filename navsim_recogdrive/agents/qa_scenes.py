"""Scenes of a split as records: from NAVSIM's SceneLoader to what stage 1 makes its questions of.

The split, its filter and its paths come from NAVSIM's own configuration, and its own SceneLoader cuts the scenes; the
numbers of a record are those the agent sees and is trained on. Images are looked at, not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from navsim.planning.simulation.planner.pdm_planner.utils.pdm_geometry_utils import (
    convert_absolute_to_relative_se2_array,
)
from numpy.typing import NDArray
from nuplan.common.actor_state.state_representation import StateSE2
from omegaconf import DictConfig
from pyquaternion import Quaternion

from navsim_recogdrive.agents.compat import NAVSIM_MAJOR, open_log, training_config_folder
from navsim_recogdrive.agents.observations import observation_from_agent_input
from navsim_recogdrive.agents.qa_lanes import LaneMap, lane_map
from navsim_recogdrive.observation import HISTORY_POSES, HORIZON_POSES, InvalidObservation
from navsim_recogdrive.pretraining.images import BadImage, decoded_image_size
from navsim_recogdrive.pretraining.records import (
    PRESENT,
    TRACK_TIMES_S,
    AgentTrack,
    CameraView,
    InvalidRecord,
    SceneRecord,
)

_CAMERAS = {"front_left": "CAM_L0", "front": "CAM_F0", "front_right": "CAM_R0"}
"""The logs' names of the cameras in :data:`~navsim_recogdrive.observation.CAMERA_SETS`."""

_ON_LANES = ("vehicle", "bicycle")

PARTS = ("auto", "train", "val", "all")


class UnusableSplit(ValueError):
    """A split that gives no scenes, or whose settings contradict each other."""


@dataclass(frozen=True)
class Split:
    """Where the scenes of a split are, and which of them are wanted.

    Folders are absolute paths, with links as they are: images may lie behind one.

    Attributes:
        logs: names of the logs, sorted.
        scene_filter: NAVSIM's, with the split's settings.
        log_folder: of the log pickles.
        sensor_folder: of the images.
        data_root: what paths of images are relative to.
        part: ``train``, ``val`` or ``all``: which logs of the split these are.
    """

    logs: tuple[str, ...]
    scene_filter: Any
    log_folder: Path
    sensor_folder: Path
    data_root: Path
    part: str


@dataclass(frozen=True)
class SkippedScene:
    """A scene that gives no record: its token, and why (``image missing``, ``invalid``, ...) with the details."""

    token: str
    reason: str
    detail: str = ""


def open_split(overrides: Sequence[str], part: str = "auto", data_root: Path | None = None) -> Split:
    """Find a split through the configuration of NAVSIM's training runner.

    Args:
        overrides: Hydra's, as for ``run_training.py``: ``train_test_split=navtrain``, ``train_logs=[...]``.
        part: ``train`` (only logs of ``train_logs``, as the runner trains on), ``val``, ``all``, or ``auto``: ``train``
            for splits of the ``trainval`` data, else ``all``.
        data_root: what paths of images are relative to; the default is two folders above the images, which is
            ``OPENSCENE_DATA_ROOT``.

    Raises:
        UnusableSplit: if the folders are missing, the filter has ``max_scenes``, or no log is left.
    """
    return choose_logs(read_config(overrides), part, data_root)


def read_config(overrides: Sequence[str]) -> DictConfig:
    """The configuration of NAVSIM's training runner; some seconds."""
    with initialize_config_dir(config_dir=str(training_config_folder()), version_base=None):
        return compose("default_training", overrides=list(overrides))


def choose_logs(config: DictConfig, part: str = "auto", data_root: Path | None = None) -> Split:
    """As :func:`open_split`, from a configuration that was read."""
    scene_filter = instantiate(config.train_test_split.scene_filter)
    if scene_filter.max_scenes is not None:
        raise UnusableSplit(
            f"scene_filter.max_scenes={scene_filter.max_scenes} takes the first scenes in the order of the disk: "
            "choose logs instead, train_test_split.scene_filter.log_names=[...]"
        )
    if scene_filter.num_history_frames != HISTORY_POSES:
        raise UnusableSplit(
            f"scene_filter.num_history_frames={scene_filter.num_history_frames}: the prompt needs {HISTORY_POSES}"
        )
    log_folder = Path(config.navsim_log_path).absolute()
    sensor_folder = Path(config.original_sensor_path if NAVSIM_MAJOR >= 2 else config.sensor_blobs_path).absolute()
    for folder in (log_folder, sensor_folder):
        if not folder.is_dir():
            raise UnusableSplit(f"no folder {folder}: check OPENSCENE_DATA_ROOT and train_test_split")
    root = sensor_folder.parents[1] if data_root is None else _above(sensor_folder, data_root)
    if part == "auto":
        part = "train" if config.train_test_split.data_split == "trainval" else "all"
    present = {path.stem for path in log_folder.glob("*.pkl")}
    admitted = present if scene_filter.log_names is None else present & set(scene_filter.log_names)
    chosen = admitted if part == "all" else admitted & set(config[f"{part}_logs"])
    if not chosen:
        raise UnusableSplit(
            f"no log to read: {log_folder} holds {len(present)} logs, the scene filter admits {len(admitted)} of them"
            + ("" if part == "all" else f", and {part}_logs none of those; set {part}_logs=[NAME,...], or ask for all")
        )
    return Split(tuple(sorted(chosen)), scene_filter, log_folder, sensor_folder, root, part)


def _above(folder: Path, data_root: Path) -> Path:
    """The data root as the path of ``folder`` spells it: however it is given, paths of images begin with it."""
    if data_root.is_dir():
        for parent in (folder, *folder.parents):
            if parent.samefile(data_root):
                return parent
    raise UnusableSplit(f"the images in {folder} are not below the data root {data_root}")


def log_records(
    split: Split, log: str, cameras: Sequence[str], maps: Path | None = None
) -> Iterator[SceneRecord | SkippedScene]:
    """The original scenes of one log in their order of time; those of which no record can be made say why.

    Args:
        split: from :func:`open_split`.
        log: one of its logs.
        cameras: whose images a record names, from left to right; ``front`` must be among them.
        maps: folder of nuPlan's maps, to say who is on which lane; ``None`` opens no map.

    Raises:
        NoMap: if a map cannot be opened.
    """
    loader = open_log(split.log_folder, split.sensor_folder, split.scene_filter, log)
    sizes: dict[Path, tuple[int, int]] = {}
    for token, frames in loader.scene_frames_dicts.items():
        try:
            record = _record(split, token, frames, loader.get_agent_input_from_token(token), cameras, sizes)
            yield record if maps is None else _with_lanes(record, frames, lane_map(maps, record.map_name))
        except BadImage as error:
            yield SkippedScene(token, f"image {error.reason}", str(error))
        except (InvalidRecord, InvalidObservation) as error:
            yield SkippedScene(token, "invalid", str(error))
        except (KeyError, IndexError, AssertionError) as error:
            yield SkippedScene(token, "incomplete log", f"{type(error).__name__}: {error}")


def _record(
    split: Split,
    token: str,
    frames: Sequence[dict[str, Any]],
    agent_input: Any,
    cameras: Sequence[str],
    sizes: dict[Path, tuple[int, int]],
) -> SceneRecord:
    observation = observation_from_agent_input(agent_input, cameras=())
    present = frames[PRESENT]
    frames = frames[: HISTORY_POSES + HORIZON_POSES]
    poses = _ego_poses(frames)
    future = poses[HISTORY_POSES:].astype(np.float32) if len(poses) == HISTORY_POSES + HORIZON_POSES else None
    lights = [bool(red) for _, red in present["traffic_lights"]]
    return SceneRecord(
        token=token,
        log_name=str(present["log_name"]),
        map_name=str(present["map_location"]),
        cameras=tuple(_camera(split, name, present["cams"][_CAMERAS[name]], sizes) for name in cameras),
        past_poses=observation.past_poses,
        ego_status=observation.ego_status,
        future_poses=future,
        agents=tuple(_tracks(frames, poses)),
        lights=(sum(lights), len(lights) - sum(lights)),
    )


def _with_lanes(record: SceneRecord, frames: Sequence[dict[str, Any]], lanes: LaneMap) -> SceneRecord:
    """The record with the lanes of the ego, vehicles and bicycles."""
    origin = _global_poses([frames[PRESENT]])[0]
    ego = np.full((len(TRACK_TIMES_S), 3), np.nan)
    ego[:HISTORY_POSES] = record.past_poses
    if record.future_poses is not None:
        ego[HISTORY_POSES:] = record.future_poses
    tracks = [
        ego,
        *(agent.poses if agent.category in _ON_LANES else np.full_like(ego, np.nan) for agent in record.agents),
    ]
    local = np.concatenate(tracks)
    cos, sin = np.cos(origin[2]), np.sin(origin[2])
    positions = local[:, :2] @ np.array([[cos, sin], [-sin, cos]]) + origin[:2]
    found = lanes.lanes_at(np.column_stack([positions, local[:, 2] + origin[2]]))
    rows = [tuple(found[start : start + len(ego)]) for start in range(0, len(found), len(ego))]
    agents = tuple(
        replace(agent, lanes=row if agent.category in _ON_LANES else ())
        for agent, row in zip(record.agents, rows[1:], strict=True)
    )
    return replace(record, lanes=rows[0], agents=agents)


def _ego_poses(frames: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Poses ``[T, 3]`` of all frames in the present ego frame, as NAVSIM computes its target."""
    poses = _global_poses(frames)
    relative: NDArray[np.float64] = convert_absolute_to_relative_se2_array(StateSE2(*poses[PRESENT]), poses)
    return relative


def _global_poses(frames: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Poses ``[T, 3]`` of the ego's rear axle on the map."""
    poses = np.array(
        [
            [*frame["ego2global_translation"][:2], Quaternion(*frame["ego2global_rotation"]).yaw_pitch_roll[0]]
            for frame in frames
        ],
        dtype=np.float64,
    )
    if not np.isfinite(poses).all():
        raise InvalidRecord("an ego pose is not finite")
    return poses


def _camera(split: Split, name: str, camera: dict[str, Any], sizes: dict[Path, tuple[int, int]]) -> CameraView:
    path = split.sensor_folder / camera["data_path"]
    if path not in sizes:
        sizes[path] = decoded_image_size(path)
    width, height = sizes[path]
    distortion = np.zeros(5)
    given = np.asarray(camera.get("distortion", ()), dtype=np.float64).ravel()[:5]
    distortion[: len(given)] = given
    return CameraView(
        name=name,
        image=str(PurePosixPath(path.relative_to(split.data_root).as_posix())),
        width=width,
        height=height,
        intrinsics=camera["cam_intrinsic"],
        rotation=camera["sensor2lidar_rotation"],
        translation=camera["sensor2lidar_translation"],
        distortion=distortion,
    )


def _tracks(frames: Sequence[dict[str, Any]], ego_poses: NDArray[np.float64]) -> Iterator[AgentTrack]:
    """What is annotated at present, with its poses in all frames; boxes are in the ego frame of their own time."""
    length = HISTORY_POSES + HORIZON_POSES
    poses: dict[str, NDArray[np.float64]] = {}
    for row, (frame, ego) in enumerate(zip(frames, ego_poses, strict=True)):
        boxes = np.asarray(frame["anns"]["gt_boxes"], dtype=np.float64).reshape(-1, 7)
        cos, sin = np.cos(ego[2]), np.sin(ego[2])
        xy = boxes[:, :2] @ np.array([[cos, sin], [-sin, cos]]) + ego[:2]
        headings = (boxes[:, 6] + ego[2] + np.pi) % (2 * np.pi) - np.pi
        for track, (x, y), heading in zip(frame["anns"]["track_tokens"], xy, headings, strict=True):
            if np.isfinite((x, y, heading)).all():
                poses.setdefault(str(track), np.full((length, 3), np.nan))[row] = x, y, heading
    now = frames[PRESENT]["anns"]
    for box, name, velocity, track in zip(
        now["gt_boxes"], now["gt_names"], now["gt_velocity_3d"], now["track_tokens"], strict=True
    ):
        yield AgentTrack(
            track_token=str(track),
            category=str(name),
            size=(float(box[3]), float(box[4]), float(box[5])),
            poses=poses.get(str(track), np.full((length, 3), np.nan)),
            centre_z=float(box[2]),
            velocity=np.nan_to_num(np.asarray(velocity, dtype=np.float64)[:2]),
        )
