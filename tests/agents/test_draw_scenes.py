"""NAVSIM's scenes drawn: the view that is made of its log and map is the world's own, which knows neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image
from shapely.geometry import Polygon

pytestmark = pytest.mark.navsim


def area(view: Any, kind: str) -> Any:
    return shapely.union_all([Polygon(one.outline, one.holes) for one in view.areas if one.kind == kind])


def test_views_are_those_of_the_world(navsim_world: Path) -> None:
    from navsim_recogdrive.agents.log_scene import find_scene
    from navsim_recogdrive.agents.scene_views import map_folder, scene_view
    from navsim_recogdrive.viz.world_scenes import world_view
    from navsim_recogdrive.world.scenes import load_scenes

    for scene in load_scenes(navsim_world, "test")[::5]:
        ours = scene_view(find_scene(navsim_world, token=scene.token), map_folder())
        theirs = world_view(scene)
        assert (ours.title, ours.subtitle) == (theirs.title, theirs.subtitle)
        np.testing.assert_allclose(ours.human, theirs.human, atol=1e-6)
        np.testing.assert_allclose(ours.past_poses, theirs.past_poses, atol=1e-6)
        assert len(ours.agents) == len(theirs.agents)
        np.testing.assert_allclose([a.pose for a in ours.agents], [a.pose for a in theirs.agents], atol=1e-6)
        np.testing.assert_array_equal(ours.camera.image, theirs.camera.image)
        np.testing.assert_allclose(ours.camera.intrinsics, theirs.camera.intrinsics)
        assert {a.kind for a in ours.areas} == {a.kind for a in theirs.areas} - {"drivable"}
        near = shapely.Point(0, 0).buffer(60)
        for kind in ("lane", "intersection", "crosswalk", "route"):
            a, b = area(ours, kind) & near, area(theirs, kind) & near
            assert (a ^ b).area < 0.01 * max(b.area, 1.0), kind
        red = [
            sorted(line.points[0].round(1).tolist() for line in v.lines if line.kind == "red_light")
            for v in (ours, theirs)
        ]
        assert len(red[0]) >= len(red[1])
        assert all(point in red[0] for point in red[1])


def test_pictures_with_pdm_scores(
    navsim_world: Path,
    metric_cache: Path,
    tiny_vlm: Path,
    planner_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from navsim_recogdrive.agents import draw_scenes
    from navsim_recogdrive.agents.log_scene import score_plans
    from navsim_recogdrive.viz import commands

    views: list[Any] = []
    draw_sheet = commands.draw_sheet
    monkeypatch.setattr(commands, "draw_sheet", lambda view, height: views.append(view) or draw_sheet(view, height))
    log = sorted((navsim_world / "navsim_logs" / "test").glob("*.pkl"))[0].stem
    options = ["pictures", str(tmp_path), "--log", log, "--scenes", "2", "--height", "240", "--device", "cpu"]
    models = ["--vlm", str(tiny_vlm), "--checkpoint", str(planner_checkpoint), "--samples", "3"]
    assert draw_scenes.main([*options, *models, "--metric-cache", str(metric_cache)]) == 0, capsys.readouterr().err
    assert len(views) == 2
    for view in views:
        notes = json.loads((tmp_path / f"{view.title}.json").read_text())
        assert notes["log_name"] == log
        expected = score_plans(metric_cache, view.title, view.samples.poses.astype(np.float32))["score"]
        np.testing.assert_allclose(view.samples.rewards, expected)
        assert view.plans[0].score == expected[0]
        footprint = view.plans[0].footprint
        assert footprint.shape == (41, 3)
        np.testing.assert_allclose(footprint[0], 0.0, atol=1e-6)
        with Image.open(tmp_path / f"{view.title}.png") as picture:
            assert picture.height == 240


def test_the_simulated_ego_follows_the_human(navsim_world: Path, metric_cache: Path) -> None:
    from navsim_recogdrive.agents.log_scene import find_scene
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder
    from navsim_recogdrive.agents.scene_views import judge, scenes_of_log

    log = sorted((navsim_world / "navsim_logs" / "test").glob("*.pkl"))[-1].stem
    scenes = scenes_of_log(navsim_world, log, "test")
    for token, frame in scenes.items():
        scene = find_scene(navsim_world, log=log, frame=frame)
        assert scene.token == token
        assert scene.human_poses is not None, "its future is whole"
    assert min(scenes.values()) == 3
    scored = MetricCacheFolder(metric_cache)
    scene = find_scene(navsim_world, token=next(one for one in scenes if not scored.missing_tokens([one])))
    human = scene.human_poses
    judgement = judge(metric_cache, scene.token)(human[None])
    driven = judgement.footprints[0, 5::5]
    assert np.abs(driven[:, :2] - human[:, :2]).max() < 0.8, "its controller lags a little"
    assert judgement.scores[0] > 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which scenes? Give --token TOKEN... or --log NAME..."),
        (["--token", "0123"], "no scene '0123'"),
        (["--token", "0123", "4567"], "error: no scene '0123'"),
        (["--log", "nowhere"], "has no log 'nowhere'"),
        (["--token", "TOKEN", "--metric-cache", "none"], "no metric cache folder none"),
        (["--token", "TOKEN", "--maps", "none"], "in none cannot be opened"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, navsim_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from navsim_recogdrive.agents import draw_scenes
    from navsim_recogdrive.world.scenes import load_scenes

    token = load_scenes(navsim_world, "test")[0].token
    given = [word.replace("TOKEN", token) for word in arguments]
    assert draw_scenes.main(["pictures", str(tmp_path / "out"), *given]) == 2
    assert message in capsys.readouterr().err


def test_tokens_that_no_log_has_are_passed_over(
    navsim_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report lists scenes of both stages; those of the second lie in no log."""
    from navsim_recogdrive.agents import draw_scenes
    from navsim_recogdrive.world.scenes import load_scenes

    token = load_scenes(navsim_world, "test")[0].token
    second = f"{token[:-1]}x0"
    arguments = ["--token", second, token, "--maps", str(navsim_world / "maps"), "--height", "240"]
    assert draw_scenes.main(["pictures", str(tmp_path / "out"), *arguments]) == 0
    assert f"passed over: no scene '{second}'" in capsys.readouterr().err
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {token}


def test_without_data_or_maps(
    navsim_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from navsim_recogdrive.agents import draw_scenes
    from navsim_recogdrive.world.scenes import load_scenes

    token = load_scenes(navsim_world, "test")[0].token
    monkeypatch.setenv("NUPLAN_MAPS_ROOT", str(tmp_path))
    assert draw_scenes.main(["pictures", str(tmp_path / "out"), "--token", token, "--height", "240"]) == 0
    assert "no nuPlan maps: set NUPLAN_MAPS_ROOT to draw them" in capsys.readouterr().err
    monkeypatch.delenv("OPENSCENE_DATA_ROOT")
    assert draw_scenes.main(["pictures", str(tmp_path / "out"), "--token", token]) == 2
    assert "Set OPENSCENE_DATA_ROOT, or give --data-root" in capsys.readouterr().err
