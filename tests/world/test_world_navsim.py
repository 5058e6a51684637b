"""The world as the real NAVSIM sees it: its loader, nuPlan's map API, and its unmodified scoring scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from navsim_recogdrive.world.road_network import LOCATIONS
from navsim_recogdrive.world.scenes import load_scenes
from navsim_recogdrive.world.simulate import network_of

pytestmark = pytest.mark.navsim


def scene_loader(world: Path, split: str):
    dataclasses = pytest.importorskip("navsim.common.dataclasses")
    from navsim.common.dataloader import SceneLoader

    sensors = dataclasses.SensorConfig.build_no_sensors()
    sensors.cam_f0 = [3]
    arguments = (
        world / "navsim_logs" / split,
        world / "sensor_blobs" / split,
        dataclasses.SceneFilter(frame_interval=1),
    )
    return SceneLoader(*arguments, sensor_config=sensors)


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_scenes_are_navsims_scenes_bit_by_bit(world, split, monkeypatch):
    loader = scene_loader(world, split)
    monkeypatch.setattr("navsim.common.dataclasses.NUPLAN_MAPS_ROOT", str(world / "maps"))
    scenes = {scene.token: scene for scene in load_scenes(world, split)}
    assert set(loader.tokens) == set(scenes)
    for token, scene in scenes.items():
        theirs, mine = loader.get_agent_input_from_token(token), scene.observation()
        status = theirs.ego_statuses[-1]
        poses = np.array([s.ego_pose for s in theirs.ego_statuses], dtype=np.float32)
        assert mine.past_poses.tobytes() == poses.tobytes()
        assert mine.velocity.tobytes() == np.asarray(status.ego_velocity, np.float32).tobytes()
        assert mine.acceleration.tobytes() == np.asarray(status.ego_acceleration, np.float32).tobytes()
        assert mine.driving_command.tolist() == status.driving_command.tolist()
        image = theirs.cameras[-1].cam_f0.image
        assert image.shape == mine.front_image.shape
        assert np.array_equal(image, mine.front_image)
        navsim_scene = loader.get_scene_from_token(token)
        target = navsim_scene.get_future_trajectory(8).poses.astype(np.float32)
        assert scene.future_poses().tobytes() == target.tobytes()
        assert navsim_scene.scene_metadata.log_name == scene.log_name
        assert navsim_scene.scene_metadata.map_name == scene.location


def test_map_api_reads_every_layer_and_finds_lanes(world, world_settings):
    pytest.importorskip("nuplan.common.maps.nuplan_map.map_factory")
    from nuplan.common.actor_state.state_representation import Point2D
    from nuplan.common.maps.maps_datatypes import SemanticMapLayer
    from nuplan.common.maps.nuplan_map.map_factory import get_maps_api

    for place, location in enumerate(LOCATIONS):
        network = network_of(place, world_settings.seed)
        api = get_maps_api(str(world / "maps"), "nuplan-maps-v1.0", location.name)
        api.initialize_all_layers()
        lane = next(iter(network.lanes.values()))
        found = api.get_map_object(str(lane.id), SemanticMapLayer.LANE)
        # Projected from degrees back to metres.
        points = np.array([[state.x, state.y] for state in found.baseline_path.discrete_path])
        assert points[0] == pytest.approx(lane.line.points[0], abs=1e-6)
        assert points[-1] == pytest.approx(lane.line.points[-1], abs=1e-6)
        assert found.speed_limit_mps == lane.speed_limit
        assert found.get_roadblock_id() == str(lane.roadblock)
        left, right = found.adjacent_edges
        assert left is None
        assert right.id == str(network.neighbour(lane).id)
        assert {edge.id for edge in found.outgoing_edges} == {str(c.id) for c in network.outgoing[lane.id]}
        connector = next(c for c in network.connectors.values() if c.signal_group is not None)
        signalled = api.get_map_object(str(connector.id), SemanticMapLayer.LANE_CONNECTOR)
        assert signalled.has_traffic_lights()
        assert len(signalled.stop_lines) == 1
        assert signalled.incoming_edges[0].id == str(connector.from_lane)
        assert signalled.parent.intersection.polygon.area > 300.0
        middle = lane.line.pose(lane.line.length / 2.0)
        assert api.is_in_layer(Point2D(middle[0], middle[1]), SemanticMapLayer.DRIVABLE_AREA)
        assert not api.is_in_layer(Point2D(middle[0] + 2000.0, middle[1]), SemanticMapLayer.DRIVABLE_AREA)


@pytest.fixture(scope="module")
def pdm_scores(world, tmp_path_factory) -> dict[str, pd.DataFrame]:
    """Rows per scene of NAVSIM's own scoring script for the human and for constant velocity, on the split ``test``."""
    navsim = pytest.importorskip("navsim")
    scripts = Path(navsim.__file__).parent / "planning" / "script"
    second = (scripts / "run_pdm_score_one_stage.py").exists()
    out = tmp_path_factory.mktemp("exp")
    environment = {
        **os.environ,
        "OPENSCENE_DATA_ROOT": str(world),
        "NUPLAN_MAPS_ROOT": str(world / "maps"),
        "NAVSIM_EXP_ROOT": str(out),
        "NAVSIM_DEVKIT_ROOT": str(Path(navsim.__file__).parents[1]),
        "PYTHONPATH": os.pathsep.join([str(Path(navsim.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    common = ["train_test_split=test", "train_test_split.scene_filter.frame_interval=1", "worker=sequential"]

    def run(script: str, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, str(scripts / script), *common, *arguments],
            env=environment, cwd=out, capture_output=True, text=True, timeout=560, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    cache = out / "metric_cache"
    run("run_metric_caching.py", f"{'metric_cache_path' if second else 'cache.cache_path'}={cache}")
    tables = {}
    for agent in ("human_agent", "constant_velocity_agent"):
        script = "run_pdm_score_one_stage.py" if second else "run_pdm_score.py"
        run(script, f"agent={agent}", f"experiment_name={agent}", f"metric_cache_path={cache}")
        [table] = (out / agent).rglob("*.csv")
        rows = pd.read_csv(table)
        tables[agent] = rows[rows.token.astype(str).str.fullmatch("[0-9a-f]{16}")]
    return tables


def test_pdm_scores_are_high_for_the_human_and_clearly_lower_for_constant_velocity(world, pdm_scores):
    human, constant = pdm_scores["human_agent"], pdm_scores["constant_velocity_agent"]
    assert len(human) == len(constant) == len(load_scenes(world, "test"))
    assert human.no_at_fault_collisions.min() == 1.0
    assert human.drivable_area_compliance.min() == 1.0
    # Version 1 has no filter for what the human does too: time to collision counts against turns past waiting cars.
    assert human.score.mean() > 0.7
    assert constant.score.mean() < human.score.mean() - 0.15
    assert constant.score.std() > 0.2
