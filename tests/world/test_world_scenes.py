"""Reading scenes back, and the world's own scores."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
import shapely

from navsim_recogdrive.observation import DRIVING_COMMANDS, InvalidObservation
from navsim_recogdrive.world.geometry import box_corners
from navsim_recogdrive.world.openscene import log_frames
from navsim_recogdrive.world.road_network import LOCATIONS
from navsim_recogdrive.world.scenes import SceneError, WorldScene, global_pose, load_scenes
from navsim_recogdrive.world.scores import InvalidPlans, WorldScores, score
from navsim_recogdrive.world.simulate import ego_footprint, network_of, simulate_drive


@pytest.fixture(scope="module")
def scenes(world) -> list[WorldScene]:
    return [*load_scenes(world, "trainval"), *load_scenes(world, "test")]


def straight(speed: float) -> np.ndarray:
    poses = np.zeros((8, 3))
    poses[:, 0] = 0.5 * speed * np.arange(1, 9)
    return poses


def to_present(scene: WorldScene, point: np.ndarray) -> np.ndarray:
    offset = complex(*(point - global_pose(scene.present)[:2])) * np.exp(-1j * global_pose(scene.present)[2])
    return np.array([offset.real, offset.imag])


def test_windows_and_splits(world, scenes):
    assert len(load_scenes(world, "train")) == 7
    assert len(load_scenes(world, "val")) == 7
    assert len(load_scenes(world, "trainval")) == 14
    assert len(load_scenes(world, "test")) == 14
    assert len({scene.token for scene in scenes}) == 28
    assert len(load_scenes(world, "test", frame_interval=14)) == 2
    assert len(load_scenes(world, "test", frame_interval=3)) == 6
    [name, _] = sorted({scene.log_name for scene in load_scenes(world, "test")})
    only = load_scenes(world, "test", log_names=[name])
    assert [scene.present["frame_idx"] for scene in only] == list(range(3, 10))
    assert all(len(scene.frames) == 14 for scene in scenes)


def test_observation_has_the_present_last_and_the_past_behind(scenes):
    for scene in scenes:
        observation = scene.observation(with_image=False)
        assert observation.past_poses[3] == pytest.approx([0.0, 0.0, 0.0])
        assert (np.diff(observation.past_poses[:, 0]) >= -0.02).all()
        assert observation.front_image is None
        assert DRIVING_COMMANDS[observation.command_index] in DRIVING_COMMANDS
        back = to_present(scene, np.array(scene.frames[0]["ego2global_translation"][:2]))
        assert observation.past_poses[0, :2] == pytest.approx(back, abs=1e-4)


def test_future_is_where_the_ego_goes(scenes):
    for scene in scenes:
        future = scene.future_poses()
        assert future.shape == (8, 3)
        assert future.dtype == np.float32
        end = to_present(scene, np.array(scene.frames[11]["ego2global_translation"][:2]))
        assert future[-1, :2] == pytest.approx(end, abs=1e-3)


def test_the_image_is_rgb(world, scenes):
    image = scenes[0].observation().front_image
    assert image is not None
    other_decoder = cv2.imread(str(scenes[0].image_path))[..., ::-1]  # JPEG decoders differ by a few steps
    assert np.abs(image.astype(int) - other_decoder.astype(int)).max() <= 3


def test_what_cannot_be_read_is_said(world, scenes, tmp_path):
    with pytest.raises(SceneError, match="one of trainval, train, val, test, found 'navtest'"):
        load_scenes(world, "navtest")
    with pytest.raises(SceneError, match="has no log 'nobody'"):
        load_scenes(world, "test", log_names=["nobody"])
    with pytest.raises(SceneError, match="frame_interval must be at least 1, found 0"):
        load_scenes(world, "test", frame_interval=0)
    with pytest.raises(SceneError, match="missing or broken"):
        replace(scenes[0], root=tmp_path).observation()
    assert not issubclass(SceneError, InvalidObservation)


def test_logged_boxes_are_in_the_rear_axle_frame(world):
    """The same parked car, seen from different poses, is in one place; and nobody stands on the ego."""
    for path in world.glob("navsim_logs/*/*.pkl"):
        seen: dict[str, list[np.ndarray]] = {}
        for frame in pickle.loads(path.read_bytes()):
            pose, annotations = global_pose(frame), frame["anns"]
            body = shapely.Polygon(ego_footprint(pose))
            for box, velocity, track in zip(
                annotations["gt_boxes"].astype(float),
                annotations["gt_velocity_3d"],
                annotations["track_tokens"],
                strict=True,
            ):
                turned = complex(box[0], box[1]) * np.exp(1j * pose[2])
                where = np.array([pose[0] + turned.real, pose[1] + turned.imag, box[6] + pose[2]])
                assert not body.intersects(shapely.Polygon(box_corners(where, box[3], box[4])))
                seen.setdefault(track, []).append(np.array([*where[:2], np.hypot(*velocity[:2])]))
        still = [np.array(track) for track in seen.values() if len(track) > 5 and np.array(track)[:, 2].max() == 0.0]
        assert still
        for track in still:
            assert np.ptp(track[:, :2], axis=0).max() < 1e-3


def test_the_expert_has_full_scores_in_every_scene(scenes):
    for scene in scenes:
        result = score(scene, scene.future_poses()[None])
        assert result.score == pytest.approx([1.0])


def test_constant_velocity_is_clearly_worse_and_scores_spread(scenes):
    plain = np.array([score(scene, straight(scene.present["ego_dynamic_state"][0])[None]).score[0] for scene in scenes])
    assert 0.2 < plain.mean() < 0.8
    assert plain.min() == 0.0
    assert ((plain > 0.05) & (plain < 0.95)).any()


def test_standing_still_makes_no_progress_where_the_expert_drives(scenes):
    moving = [scene for scene in scenes if scene.future_poses()[-1, 0] > 15.0]
    assert moving
    for scene in moving:
        result = score(scene, np.zeros((1, 8, 3)))
        assert result.progress[0] < 0.05
        assert result.score[0] < 0.3
        assert result.collision_free[0] == result.drivable_area[0] == 1.0


def test_leaving_the_road_scores_zero(scenes):
    off = straight(8.0)
    off[:, 1], off[:, 2] = -4.0 * np.arange(1, 9), -0.6
    result = score(scenes[0], off[None])
    assert result.drivable_area.tolist() == [0.0]
    assert result.score.tolist() == [0.0]


def test_driving_into_a_parked_car_is_a_collision_at_fault(scenes):
    found = 0
    for scene in scenes:
        annotations = scene.present["anns"]
        for box, velocity in zip(annotations["gt_boxes"], annotations["gt_velocity_3d"], strict=True):
            if 8.0 < box[0] < 25.0 and abs(box[1]) < 12.0 and not velocity.any():
                plan = np.zeros((8, 3))
                plan[:, :2] = np.linspace(0.0, 1.0, 9)[1:, None] * box[:2]
                plan[:, 2] = np.arctan2(box[1], box[0])
                assert score(scene, plan[None]).collision_free[0] == 0.0
                found += 1
    assert found > 0


def test_being_run_into_from_behind_is_not_the_egos_fault(scenes):
    scene = copy.deepcopy(next(s for s in scenes if min(f["ego_dynamic_state"][0] for f in s.frames) > 2.0))
    for number, frame in enumerate(scene.frames):
        gap = min(-9.0 + 1.5 * max(number - 3, 0), -2.9)
        frame["anns"] = {
            "gt_boxes": np.array([[gap, 0.0, 0.8, 4.5, 1.9, 1.6, 0.0]]),
            "gt_velocity_3d": np.array([[frame["ego_dynamic_state"][0], 0.0, 0.0]]),
            "track_tokens": ["tailgater"],
        }
    assert score(scene, scene.future_poses()[None]).collision_free[0] == 1.0
    for frame in scene.frames:  # the same car, always in front
        frame["anns"]["gt_boxes"] = np.array([[9.0, 0.0, 0.8, 4.5, 1.9, 1.6, 0.0]])
        frame["anns"]["gt_velocity_3d"] = np.zeros((1, 3))
    assert score(scene, straight(25.0)[None]).collision_free[0] == 0.0


def windows(world, numbers):
    for number in numbers:
        drive = simulate_drive(3, number, number % 4, 40, 35, 0)
        frames = log_frames("log", number, drive, network_of(drive.location, 3), (480, 270))
        for start in range(len(frames) - 13):
            yield WorldScene(world, "test", frames[start : start + 14])


def test_entering_a_junction_against_red_is_seen_and_leaving_it_is_not(world):
    entering = leaving = 0
    for scene in windows(world, range(10, 16)):
        if entering and leaving:
            break
        network = network_of([place.name for place in LOCATIONS].index(scene.location), 3)
        red = copy.deepcopy(scene)
        for frame in red.frames:
            frame["traffic_lights"] = [(number, True) for number in network.connectors]
        route = [network.roadblocks[int(block)] for block in scene.present["roadblock_ids"][:2]]
        lit = [block for block in route if block.is_connector and network.junctions[block.node].signalised]
        if not lit or score(scene, scene.future_poses()[None]).score[0] < 1.0:
            continue
        corners = [shapely.Polygon(ego_footprint(pose)) for pose in scene.global_poses(3, 12)]
        touching = [lit[0].polygon.intersects(body) for body in corners]
        result = score(red, scene.future_poses()[None])
        if touching[0]:
            leaving += 1
            assert result.red_light[0] == 1.0
        elif any(touching):
            entering += 1
            assert result.red_light[0] == 0.0
            assert result.score[0] == 0.0
    assert entering > 0
    assert leaving > 0


def test_jerky_plans_lose_comfort(scenes):
    scene = next(s for s in scenes if s.future_poses()[-1, 0] > 15.0)
    plan = scene.future_poses().astype(float)[None]
    plan[:, ::2, 0] += 1.5
    result = score(scene, plan)
    assert result.comfort[0] < 0.7
    assert result.progress[0] > 0.9


def test_many_plans_at_once_score_as_one_by_one(scenes):
    rng = np.random.default_rng(0)
    for scene in scenes[::9]:
        noise = rng.normal(0.0, 1.0, (6, 8, 3)) * np.array([3.0, 1.0, 0.1])
        plans = scene.future_poses()[None] + noise
        together = score(scene, plans)
        alone = [score(scene, plan[None]) for plan in plans]
        for field in ("collision_free", "drivable_area", "red_light", "progress", "comfort", "score"):
            assert getattr(together, field).tolist() == [float(getattr(one, field)[0]) for one in alone]
        assert isinstance(together, WorldScores)
        assert ((together.score >= 0.0) & (together.score <= 1.0)).all()


def test_wrong_plans_are_refused(scenes):
    with pytest.raises(InvalidPlans, match=r"\[N, 8, 3\], found \[8, 3\]"):
        score(scenes[0], np.zeros((8, 3)))
    with pytest.raises(InvalidPlans, match="not finite"):
        score(scenes[0], np.full((1, 8, 3), np.nan))
