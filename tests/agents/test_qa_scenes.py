"""Records of scenes against what NAVSIM itself hands over, and words for behaviour against simulated traffic."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.navsim

EVERY_FRAME = "train_test_split.scene_filter.frame_interval=1"


@pytest.fixture(scope="module")
def records(tiny_world: Path):
    """Records of the first test log, with lanes."""
    from navsim_recogdrive.agents.qa_scenes import log_records, open_split

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("OPENSCENE_DATA_ROOT", str(tiny_world)), ("NAVSIM_EXP_ROOT", "unused")):
            patch.setenv(name, value)
        split = open_split(["train_test_split=test", EVERY_FRAME])
    return list(log_records(split, split.logs[0], ("front",), tiny_world / "maps"))


def test_records_hold_what_the_agent_sees_and_is_trained_on(records, scene_loader, navsim_world: Path) -> None:
    from navsim_recogdrive.agents.observations import camera_config, observation_from_agent_input

    loader = scene_loader("test", camera_config(("front",)))
    tokens = [
        token for token, frames in loader.scene_frames_dicts.items() if frames[0]["log_name"] == records[0].log_name
    ]
    assert [record.token for record in records] == tokens
    for record in records:
        scene = loader.get_scene_from_token(record.token)
        observation = observation_from_agent_input(scene.get_agent_input())
        np.testing.assert_array_equal(record.past_poses, observation.past_poses)
        np.testing.assert_array_equal(record.ego_status, observation.ego_status)
        future = np.asarray(scene.get_future_trajectory(8).poses, dtype=np.float32)
        np.testing.assert_array_equal(record.future_poses, future)
        image = np.array(Image.open(navsim_world / record.image))
        np.testing.assert_array_equal(image, observation.front_image)
        assert (record.height, record.width) == image.shape[:2]
        view, camera = record.front, scene.frames[3].cameras.cam_f0
        np.testing.assert_array_equal(view.intrinsics, camera.intrinsics)
        np.testing.assert_array_equal(view.rotation, camera.sensor2lidar_rotation)
        np.testing.assert_array_equal(view.translation, camera.sensor2lidar_translation)


def test_tracks_are_the_annotations_of_all_frames(records, scene_loader) -> None:
    from navsim_recogdrive.agents.compat import SensorConfig

    loader = scene_loader("test", SensorConfig.build_no_sensors())
    compared = 0
    for record in records[::3]:
        scene = loader.get_scene_from_token(record.token)
        now = scene.frames[3]
        assert [agent.track_token for agent in record.agents] == list(now.annotations.track_tokens)
        assert [agent.category for agent in record.agents] == list(now.annotations.names)
        x0, y0, h0 = now.ego_status.ego_pose
        for agent, box, velocity in zip(record.agents, now.annotations.boxes, now.annotations.velocity_3d, strict=True):
            np.testing.assert_allclose(agent.present, box[[0, 1, 6]], atol=1e-6)
            np.testing.assert_allclose((*agent.size, agent.centre_z), box[[3, 4, 5, 2]], atol=1e-6)
            np.testing.assert_allclose(agent.velocity, velocity[:2], atol=1e-6)
            for row in range(12):
                frame = scene.frames[row]
                tokens = list(frame.annotations.track_tokens)
                if agent.track_token not in tokens:
                    assert np.isnan(agent.poses[row]).all()
                    continue
                there = frame.annotations.boxes[tokens.index(agent.track_token)]
                x, y, h = frame.ego_status.ego_pose
                place = np.array([x, y]) + _turn(h) @ there[:2]
                ours = np.array([x0, y0]) + _turn(h0) @ agent.poses[row, :2]
                np.testing.assert_allclose(ours, place, atol=1e-3)
                assert np.cos(agent.poses[row, 2] + h0 - there[6] - h) == pytest.approx(1.0)
                compared += 1
    assert compared > 500


def _turn(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def test_lanes_are_those_of_the_map(records) -> None:
    on_lanes = [lane for record in records for lane in record.lanes]
    assert len(on_lanes) == 12 * len(records)
    assert np.mean([lane is not None for lane in on_lanes]) > 0.95
    assert max(abs(lane.offset) for lane in on_lanes if lane is not None) < 2.5
    for record in records:
        for agent in record.agents:
            assert len(agent.lanes) == (12 if agent.category == "vehicle" else 0)


def test_boxes_are_where_the_renderer_draws(records) -> None:
    """The world's own camera sees the middle of an object within its box."""
    from navsim_recogdrive.pretraining.facts import SceneFacts
    from navsim_recogdrive.world.camera import Camera

    seen = 0
    for record in records:
        view = record.front
        camera = Camera("CAM_F0", (view.width, view.height))
        np.testing.assert_allclose(camera.intrinsics, view.intrinsics)
        for agent in SceneFacts.of(record).agents:
            if agent.box is None or agent.box.inside < 1.0 or agent.hidden > 0.0:
                continue
            corner = np.array([*agent.track.present[:2], agent.track.centre_z])
            (pixel,) = camera.to_pixels(camera.to_camera(corner[None], np.zeros(3)))
            assert agent.box.left < pixel[0] < agent.box.right
            assert agent.box.top < pixel[1] < agent.box.bottom
            seen += 1
    assert seen > 10


def test_splits_choose_their_logs(navsim_world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from navsim_recogdrive.agents.qa_scenes import UnusableSplit, choose_logs, read_config

    monkeypatch.setenv("NAVSIM_EXP_ROOT", "unused")
    names = sorted(path.stem for path in (navsim_world / "navsim_logs" / "trainval").glob("*.pkl"))
    train = [name for name in names if "train" in name]
    config = read_config(["train_test_split=trainval", f"train_logs=[{','.join(train)}]", "val_logs=[]"])

    def changed(key: str, value: object):
        copy = config.copy()
        OmegaConf.update(copy, key, value)
        return copy

    assert choose_logs(config).logs == tuple(train), "by default only what is trained on"
    assert choose_logs(config, "all").logs == tuple(names)
    only = changed("train_test_split.scene_filter.log_names", [names[0], "elsewhere"])
    assert choose_logs(only, "all").logs == (names[0],)
    assert choose_logs(changed("train_test_split.data_split", "test")).part == "all"
    with pytest.raises(UnusableSplit, match="val_logs none of those; set val_logs="):
        choose_logs(config, "val")
    with pytest.raises(UnusableSplit, match=f"holds {len(names)} logs, the scene filter admits 0"):
        choose_logs(changed("train_test_split.scene_filter.log_names", ["elsewhere"]), "all")
    with pytest.raises(UnusableSplit, match="max_scenes=3"):
        choose_logs(changed("train_test_split.scene_filter.max_scenes", 3))
    with pytest.raises(UnusableSplit, match="num_history_frames=2: the prompt needs 4"):
        choose_logs(changed("train_test_split.scene_filter.num_history_frames", 2))
    with pytest.raises(UnusableSplit, match="not below the data root"):
        choose_logs(config, data_root=tmp_path)
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(tmp_path))
    with pytest.raises(UnusableSplit, match="check OPENSCENE_DATA_ROOT"):
        choose_logs(config)


def test_without_a_map_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from navsim_recogdrive.agents.qa_lanes import LaneMap, NoMap, map_root

    monkeypatch.setenv("NUPLAN_MAPS_ROOT", str(tmp_path))
    with pytest.raises(NoMap, match="set it to the folder of nuPlan's maps"):
        map_root()
    with pytest.raises(NoMap, match="cannot be opened"):
        LaneMap(tmp_path, "us-ma-boston")


def test_words_against_simulated_traffic(navsim_world: Path) -> None:
    """Turns, lane changes and speeds of the world's traffic, whose routes are known."""
    from qa_truth import drives

    from navsim_recogdrive.agents.qa_lanes import LaneMap
    from navsim_recogdrive.pretraining.behaviour import behaviour_of

    paths: Counter[tuple[str, bool]] = Counter()
    speeds: Counter[tuple[str, bool]] = Counter()
    for drive in drives(numbers=range(6), seconds=30):
        lanes = LaneMap(navsim_world / "maps", drive.location)
        for window in drive.windows():
            found = behaviour_of(window.poses, tuple(lanes.lanes_at(window.poses)))
            if window.path is not None:
                paths[window.path, found.path in (window.path, None)] += 1
            if window.speed is not None:
                speeds[window.speed, found.speed == window.speed] += 1
    assert not paths["straight", False]
    for path in ("turn left", "turn right"):
        assert paths[path, True] > 10
        assert not paths[path, False]
    for path in ("lane change left", "lane change right"):
        assert paths[path, True] >= 3 * paths[path, False]
    assert paths["lane change left", True] + paths["lane change right", True] > 5
    for speed in ("still", "stop", "accelerate", "decelerate", "keep"):
        assert speeds[speed, True] > 10
        assert speeds[speed, True] > 20 * speeds[speed, False], speed
