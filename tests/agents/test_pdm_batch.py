"""The batched PDM score equals NAVSIM's ``pdm_score`` of each trajectory alone, to the last bit."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pdm_proposals import NavsimScore, proposals, with_obstacles

pytestmark = pytest.mark.navsim

Rows = dict[str, NDArray[np.float64]]


@pytest.fixture(scope="module")
def scenes(metric_cache: Path) -> list[Any]:
    """The metric caches as they come from disk."""
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder

    folder = MetricCacheFolder(metric_cache)
    return [folder.read(token) for token in folder.tokens]


def score_batched(scene: Any, trajectories: NDArray[np.float32], **settings: Any) -> Rows:
    from navsim_recogdrive.agents.compat_pdm import Scorer
    from navsim_recogdrive.agents.pdm_batch import BatchScorer, prepare

    scene = copy.deepcopy(scene)
    scorer = Scorer(settings)
    prepare(scene, scorer)
    batch = BatchScorer(scorer)
    found = batch.score(trajectories, scene)
    rows = {"score": found.scores, **found.sub_scores}
    again = batch.score(trajectories, scene, found.reference)
    assert_same({"score": again.scores, **again.sub_scores}, rows)
    return rows


def score_one_by_one(scene: Any, trajectories: NDArray[np.float32], **settings: Any) -> Rows:
    navsim = NavsimScore(**settings)
    scene = copy.deepcopy(scene)
    rows = [navsim(scene, poses) for poses in trajectories]
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def assert_same(ours: Rows, theirs: Rows) -> None:
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def test_scores_are_navsims_to_the_last_bit(scenes: list[Any]) -> None:
    seen: dict[str, set[float]] = {}
    pairs = 0
    for seed, scene in enumerate(scenes):
        trajectories = proposals(seed)[:: 1 + seed % 2]
        ours = score_batched(scene, trajectories)
        assert_same(ours, score_one_by_one(scene, trajectories))
        pairs += len(trajectories)
        for name, values in ours.items():
            seen.setdefault(name, set()).update(values.tolist())
    assert pairs > 200
    # No light is red on the way in these scenes, which the next test sees to.
    ends = {name: {0.0, 1.0} & values for name, values in seen.items() if name != "traffic_light_compliance"}
    ends.pop("score")
    assert ends == {name: {0.0, 1.0} for name in ends}
    assert 0.5 in seen["driving_direction_compliance"]
    assert len(seen["score"]) > 80


def test_scores_with_a_cone_a_red_light_and_a_car_on_the_ego(scenes: list[Any]) -> None:
    scene = with_obstacles(scenes[0])
    trajectories = proposals(0)
    ours = score_batched(scene, trajectories)
    assert_same(ours, score_one_by_one(scene, trajectories))
    assert 0.5 in ours["no_at_fault_collisions"], "the cone must be hit"
    if "traffic_light_compliance" in ours:
        assert set(ours["traffic_light_compliance"]) == {0.0, 1.0}


def test_scores_with_other_weights(scenes: list[Any]) -> None:
    from navsim_recogdrive.agents.compat_pdm import IS_V2

    name = "history_comfort_weight" if IS_V2 else "driving_direction_weight"
    settings = {"progress_weight": 10.0, name: 3.0}
    trajectories = proposals(1)[::3]
    ours = score_batched(scenes[1], trajectories, **settings)
    assert_same(ours, score_one_by_one(scenes[1], trajectories, **settings))
    assert (ours["score"] != score_batched(scenes[1], trajectories)["score"]).any()


@pytest.mark.parametrize(
    ("human", "failed"),
    [
        (5, {"no_at_fault_collisions", "time_to_collision_within_bound", "traffic_light_compliance"}),  # 18 m/s
        (16, {"drivable_area_compliance", "driving_direction_compliance", "lane_keeping"}),  # a hard turn
    ],
)
def test_scores_after_the_human_filter(scenes: list[Any], human: int, failed: set[str]) -> None:
    from navsim_recogdrive.agents.compat_pdm import IS_V2

    if not IS_V2:
        pytest.skip("NAVSIM v1.x has no human filter")
    scene = with_obstacles(scenes[2])
    trajectories = proposals(2)
    scene.human_trajectory.poses = trajectories[human].astype(np.float64)

    filtered = score_batched(scene, trajectories)
    assert_same(filtered, score_one_by_one(scene, trajectories))
    unfiltered = score_batched(scene, trajectories, human_penalty_filter=False)
    assert_same(unfiltered, score_one_by_one(scene, trajectories, human_penalty_filter=False))
    lifted = {name for name in filtered if (filtered[name] > unfiltered[name]).any()}
    assert failed | {"score"} <= lifted
    np.testing.assert_array_equal(filtered["history_comfort"], unfiltered["history_comfort"])


def test_a_synthetic_scene_has_no_human(scenes: list[Any]) -> None:
    from navsim_recogdrive.agents.compat_pdm import IS_V2

    if not IS_V2:
        pytest.skip("NAVSIM v1.x has no synthetic scenes")
    from navsim.common.enums import SceneFrameType

    scene = copy.deepcopy(scenes[3])
    scene.scene_type, scene.human_trajectory = SceneFrameType.SYNTHETIC, None
    trajectories = proposals(3)[:4]
    assert_same(score_batched(scene, trajectories), score_one_by_one(scene, trajectories))


def test_poses_and_simulated_states_are_navsims(scenes: list[Any]) -> None:
    from nuplan.common.actor_state.ego_state import EgoState
    from nuplan.common.actor_state.state_representation import StateSE2, StateVector2D

    from navsim_recogdrive.agents.compat_pdm import Scorer, absolute_trajectory, trajectory_states
    from navsim_recogdrive.agents.pdm_batch import PLANNED, interpolate

    scorer = Scorer()
    # Far from the origin nuPlan's detour over the car's centre is rounded away, near it the bits change.
    near = EgoState.build_from_rear_axle(
        StateSE2(0.3, -0.7, 3.1),
        rear_axle_velocity_2d=StateVector2D(4.0, 0.0),
        rear_axle_acceleration_2d=StateVector2D(0.5, 0.0),
        tire_steering_angle=0.1,
        time_point=scenes[0].ego_state.time_point,
        vehicle_parameters=scenes[0].ego_state.car_footprint.vehicle_parameters,
    )
    for seed, scene in enumerate([*scenes[:4], SimpleNamespace(ego_state=near)]):
        trajectories = proposals(seed)
        ours = interpolate(trajectories, scene, scorer)
        theirs = np.stack(
            [trajectory_states(absolute_trajectory(poses, PLANNED, scene), scorer, scene) for poses in trajectories]
        )
        # Poses only: velocities and the steering angle of the first state are in `theirs`, and must not be missed.
        assert np.abs(theirs[..., 3:]).max() > 0
        np.testing.assert_allclose(ours[..., :3], theirs[..., :3], rtol=0, atol=1e-9)
        np.testing.assert_array_equal(scorer.simulate(ours, scene), scorer.simulate(theirs, scene))


def test_a_trajectory_scores_the_same_in_any_company(scenes: list[Any]) -> None:
    trajectories = proposals(4)
    together = score_batched(scenes[4], trajectories)
    for columns in ([7], [3, 7], [20, 7, 1, 0]):
        part = score_batched(scenes[4], trajectories[columns])
        assert_same(part, {name: values[columns] for name, values in together.items()})


def test_a_point_that_was_not_asked_before_is_looked_up(scenes: list[Any]) -> None:
    from nuplan.common.actor_state.state_representation import Point2D
    from nuplan.common.maps.maps_datatypes import SemanticMapLayer

    from navsim_recogdrive.agents.pdm_batch import RememberingDrivableMap

    theirs = scenes[0].drivable_area_map
    ours = RememberingDrivableMap(*theirs.__reduce__()[1])
    center = scenes[0].ego_state.center
    around = np.random.default_rng(0).uniform(-40, 40, size=(60, 2)) + np.array([center.x, center.y])
    boxes = np.broadcast_to(around[:30, None, None], (30, 1, 5, 2))
    np.testing.assert_array_equal(ours.points_in_polygons(boxes), theirs.points_in_polygons(boxes))
    layers = (SemanticMapLayer.INTERSECTION, SemanticMapLayer.ROADBLOCK)
    answers = [[m.is_in_layer(Point2D(*p), layer) for p in around for layer in layers] for m in (ours, theirs)]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 2


def test_poses_that_are_not_finite_are_refused(scenes: list[Any]) -> None:
    from navsim_recogdrive.agents.pdm_batch import UnscorableTrajectory

    trajectories = proposals(0)[:3]
    trajectories[1, 2, 0] = np.inf
    with pytest.raises(UnscorableTrajectory, match=r"of 3 trajectories, \[1\] are not finite"):
        score_batched(scenes[0], trajectories)


def test_an_unknown_scorer_setting_is_refused() -> None:
    from navsim_recogdrive.agents.compat_pdm import Scorer

    with pytest.raises(ValueError, match="no scorer setting comfy_weight; it has progress_weight"):
        Scorer({"comfy_weight": 1.0})


def test_plans_of_one_scene_are_scored_as_navsim_does(metric_cache: Path, scenes: list[Any]) -> None:
    from navsim_recogdrive.agents.log_scene import SceneNotFound, score_plans
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder

    trajectories = proposals(3)[::4]
    found = score_plans(metric_cache, MetricCacheFolder(metric_cache).tokens[0], trajectories)
    assert_same({name: np.array(values) for name, values in found.items()}, score_one_by_one(scenes[0], trajectories))
    with pytest.raises(SceneNotFound, match="scene 0123 cannot be scored.*no metric cache"):
        score_plans(metric_cache, "0123", trajectories)
