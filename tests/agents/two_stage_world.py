"""Splits of two stages on the synthetic world, in the folders that NAVSIM v2.x wants them in.

Each test log gives one scene of the first stage and its neighbour half a second before. Scenes of the second stage
begin 4 s and 3.5 s later, aside of where the log went, turned, and with another speed: boxes and images are those seen
from there. As in NAVSIM's data they have no future frames, but the future tracks of the others.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from navsim_recogdrive.observation import HISTORY_POSES, HORIZON_POSES
from navsim_recogdrive.world.camera import Camera
from navsim_recogdrive.world.generate import read_index
from navsim_recogdrive.world.geometry import FloatArray, to_global, to_local
from navsim_recogdrive.world.openscene import log_frames, log_path
from navsim_recogdrive.world.presets import PRESETS, WorldSettings
from navsim_recogdrive.world.render import render
from navsim_recogdrive.world.road_network import LOCATIONS
from navsim_recogdrive.world.scenery import scenery_of
from navsim_recogdrive.world.simulate import FRAME_INTERVAL_S, Drive, Frame, network_of, simulate_drive

SPLIT = "warmup_two_stage"
CHALLENGE = "private_test_hard_two_stage"
FRONT = "CAM_F0"
PRESENT = HISTORY_POSES
"""Frame of a log at which the scene of the first stage plans; the one before has a whole history too."""
LATER = PRESENT + HORIZON_POSES
"""Frame at which its second stage begins."""


@dataclass(frozen=True)
class Start:
    """How the ego of a second-stage scene differs from the log's: metres to the left, radians, share of the speed."""

    aside: float
    turned: float
    pace: float

    def of(self, frame: Frame, origin: FloatArray) -> Frame:
        """``frame`` with the ego moved, rigidly but for its pace, about ``origin`` [3], where the log's ego ends."""
        pose = np.append(self.pace * to_local(frame.ego_pose[:2], origin), frame.ego_pose[2] + self.turned)
        moved = np.append(to_global(np.array([0.0, self.aside]), origin), origin[2] + self.turned)
        pose[:2] = to_global(pose[:2], moved)
        speeds = np.array([self.pace, self.pace, self.pace**2, self.pace**2])
        return replace(frame, ego_pose=pose, ego_motion=frame.ego_motion * speeds)


STARTS = ((Start(0.4, 0.03, 0.9), Start(-0.3, -0.02, 1.05)), (Start(-0.5, 0.02, 0.95),))
"""Of each test log."""


@dataclass(frozen=True)
class TwoStageSplit:
    """What is in the folders.

    Attributes:
        root: ``OPENSCENE_DATA_ROOT``.
        logs: names of the logs.
        mapping: as ``reactive_all_mapping`` of NAVSIM's splits: scene, the one before, pairs of the second stage.
    """

    root: Path
    logs: tuple[str, ...]
    mapping: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]

    @property
    def first(self) -> set[str]:
        """Tokens of the first stage."""
        return {token for now, before, _ in self.mapping for token in (now, before)}

    @property
    def second(self) -> set[str]:
        """Tokens of the second stage."""
        return {token for _, _, pairs in self.mapping for pair in pairs for token in pair}

    @property
    def tokens(self) -> list[str]:
        """Overrides that put these scenes in the place of those that NAVSIM's split lists."""
        lists = {"tokens": self.first, "reactive_synthetic_initial_tokens": self.second}
        return [f"train_test_split.scene_filter.{name}={_hydra(sorted(tokens))}" for name, tokens in lists.items()]

    @property
    def scored(self) -> list[str]:
        """All overrides of a split that is scored: its logs and its mapping too."""
        logs = f"train_test_split.scene_filter.log_names={_hydra(self.logs)}"
        return [*self.tokens, logs, f"train_test_split.reactive_all_mapping={_hydra(self.mapping)}"]


def _hydra(value: Any) -> str:
    """Tokens of digits alone are no numbers."""
    return f"'{value}'" if isinstance(value, str) else f"[{','.join(map(_hydra, value))}]"


def write_two_stages(world: Path, root: Path) -> TwoStageSplit:
    """Write both layouts below ``root``: that of splits that are scored, and that of the challenge.

    NAVSIM's own ``Scene.save_to_disk`` writes the second stage; it must know the world's maps.

    Args:
        world: of the preset ``seconds``.
        root: a new folder; logs, images and maps of the world are linked into it.
    """
    for name in ("maps", "navsim_logs/test", "sensor_blobs/test"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(world / name)
    for folder in (f"{SPLIT}/synthetic_scene_pickles", f"{CHALLENGE}/openscene_meta_datas"):
        (root / folder).mkdir(parents=True)
    settings = PRESETS["seconds"]
    challenge: list[dict[str, Any]] = []
    mapping = []
    drives = [(name, number) for part, name, number in settings.drives() if part == "test"]
    for (name, number), starts in zip(drives, STARTS, strict=True):
        log = pickle.loads(log_path(world, "test", name).read_bytes())
        original = log[PRESENT - HISTORY_POSES : PRESENT + 1]
        challenge += _challenge_frames(world, root, original)
        drive = _drive(settings, number)
        pairs = tuple(_second_stage(root, log, drive, number, which, start) for which, start in enumerate(starts))
        mapping.append((log[PRESENT]["token"], log[PRESENT - 1]["token"], pairs))
    logs = root / "navsim_logs" / "private_test_hard"
    logs.mkdir()
    (logs / "private_test_hard.pkl").write_bytes(pickle.dumps(challenge))
    return TwoStageSplit(root, tuple(read_index(world)["test_logs"]), tuple(mapping))


def _drive(settings: WorldSettings, number: int) -> Drive:
    """The drive of a log, and a frame more: the second stage is scored for 4 s."""
    drive = simulate_drive(
        settings.seed,
        number,
        number % len(LOCATIONS),
        settings.frames_per_log,
        settings.vehicles,
        settings.pedestrians,
    )
    last = drive.frames[-1]
    onward = [
        replace(agent, pose=agent.pose + np.append(agent.velocity * FRAME_INTERVAL_S, 0.0)) for agent in last.agents
    ]
    more = replace(last, time=last.time + FRAME_INTERVAL_S, agents=onward)
    assert len(drive.frames) == LATER + HORIZON_POSES
    return replace(drive, frames=[*drive.frames, more])


def _second_stage(
    root: Path, log: list[dict[str, Any]], drive: Drive, number: int, which: int, start: Start
) -> tuple[str, str]:
    """Write one start in both layouts; returns the tokens of its scenes at 4 s and 3.5 s."""
    settings, name = PRESETS["seconds"], log[0]["log_name"]
    network = network_of(drive.location, settings.seed)
    origin = drive.frames[LATER].ego_pose
    moved = replace(drive, frames=[start.of(frame, origin) for frame in drive.frames])
    entries = log_frames(name, number, moved, network, settings.image_size)[LATER - HISTORY_POSES : LATER + 1]
    camera = Camera(FRONT, settings.image_size)
    for frame, entry in zip(moved.frames[LATER - HISTORY_POSES :], entries, strict=False):
        entry["token"] += str(which)  # 17 digits, by which NAVSIM knows a synthetic scene
        entry["cams"][FRONT]["data_path"] = f"{name}/{FRONT}/{entry['token']}.jpg"
        image = render(scenery_of(drive.location, settings.seed), frame, camera)
        encoded = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
        for split in (SPLIT, CHALLENGE):
            path = root / split / "sensor_blobs" / entry["cams"][FRONT]["data_path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded)
    future = log_frames(name, number, drive, network, settings.image_size)
    for entries_of_scene, present in ((entries[:-1], LATER - 1), (entries[1:], LATER)):
        original = {"scene": log[present]["token"], "initial": log[present - HORIZON_POSES]["token"]}
        _save(root, entries_of_scene, future[present - HISTORY_POSES + 1 : present + HORIZON_POSES + 1], original)
    folder = root / CHALLENGE / "openscene_meta_datas"  # both scenes in one file of five frames
    (folder / f"{entries[-1]['token']}.pkl").write_bytes(pickle.dumps([_unannotated(entry) for entry in entries]))
    return entries[-1]["token"], entries[-2]["token"]


def _save(root: Path, entries: list[dict[str, Any]], log: list[dict[str, Any]], original: dict[str, str]) -> None:
    """Save one scene of ``entries`` as NAVSIM's synthetic ones are; ``log`` is the original's history and future."""
    from navsim.common.dataclasses import Scene, SensorConfig
    from navsim.planning.scenario_builder.navsim_scenario import NavSimScenario
    from nuplan.common.maps.maps_datatypes import TrafficLightStatuses

    none = SensorConfig.build_no_sensors()
    recorded = Scene.from_scene_dict_list(log, root, HISTORY_POSES, HORIZON_POSES, none)
    others = NavSimScenario(recorded, str(root / "maps"), "nuplan-maps-v1.0")
    blobs = root / SPLIT / "sensor_blobs"
    scene = Scene.from_scene_dict_list(entries, blobs, HISTORY_POSES, 0, replace(none, cam_f0=True))
    ahead = range(1, HORIZON_POSES + 1)
    scene.extended_detections_tracks = [others.get_tracked_objects_at_iteration(step) for step in ahead]
    scene.extended_traffic_light_data = [
        TrafficLightStatuses(list(others.get_traffic_light_status_at_iteration(step))) for step in ahead
    ]
    # Files are named by the scene's token, scenes are known by that of their present frame.
    scene.scene_metadata = replace(
        scene.scene_metadata,
        scene_token=f"scene-{entries[-1]['token']}",
        corresponding_original_scene=original["scene"],
        corresponding_original_initial_token=original["initial"],
    )
    scene.save_to_disk(root / SPLIT / "synthetic_scene_pickles")


def _challenge_frames(world: Path, root: Path, entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Five frames of a log as the challenge has them: one file for all logs, images beside each other, no boxes."""
    folder = root / "sensor_blobs" / "private_test_hard" / FRONT
    folder.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        source = world / "sensor_blobs" / "test" / entry["cams"][FRONT]["data_path"]
        image = folder / f"{entry['token']}.jpg"
        image.symlink_to(source)
        cameras = {**entry["cams"], FRONT: {**entry["cams"][FRONT], "data_path": f"{FRONT}/{image.name}"}}
        yield {**_unannotated(entry), "scene_token": f"challenge-{entries[0]['token']}", "cams": cameras}


def _unannotated(entry: dict[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in entry.items() if name != "anns"}, "lidar_path": None}
