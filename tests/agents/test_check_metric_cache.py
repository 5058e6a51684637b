"""Scenes without a metric cache are named before a split is scored."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.navsim


def metric_cache(folder: Path, tokens: list[str]) -> Path:
    lines = ["file_name"]
    for token in tokens:
        path = folder / "log" / "unknown" / token / "metric_cache.pkl"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        lines.append(str(path))
    (folder / "metadata").mkdir()
    (folder / "metadata" / "metric_cache_metadata_node_0.csv").write_text("\n".join(lines))
    return folder


def test_scenes_of_both_stages_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from navsim_recogdrive.agents.check_metric_cache import main
    from navsim_recogdrive.agents.compat import NAVSIM_MAJOR

    if NAVSIM_MAJOR < 2:
        pytest.skip("NAVSIM v1.x has no second stage")
    monkeypatch.delenv("OPENSCENE_DATA_ROOT", raising=False)
    scenes = ["tokens=[a,b]", "reactive_synthetic_initial_tokens=[s0,t0]"]
    filtered = [f"train_test_split.scene_filter.{one}" for one in scenes]
    overrides = [*filtered, "worker=of_the_runner", "simulator.nowhere=1"]
    whole = metric_cache(tmp_path / "whole", ["a", "b", "s0", "t0", "other"])
    assert main([str(whole), "--split", "warmup_two_stage", *overrides]) == 0
    part = metric_cache(tmp_path / "part", ["a", "b", "s0"])
    assert main([str(part), "--split", "warmup_two_stage", *overrides]) == 2, "and nothing says where t0 would be"


def test_scenes_of_the_data_are_counted(
    navsim_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from navsim_recogdrive.agents.check_metric_cache import main
    from navsim_recogdrive.agents.compat import NAVSIM_MAJOR
    from navsim_recogdrive.agents.submission_tokens import tokens_of_split

    monkeypatch.setenv("NAVSIM_EXP_ROOT", "unused")
    second = ["++train_test_split.scene_filter.reactive_synthetic_initial_tokens=[]"] if NAVSIM_MAJOR >= 2 else []
    first, other, *_ = sorted(tokens_of_split("test", second).first)
    listed = f"train_test_split.scene_filter.tokens=['{first}', '{other}', 'of_a_log_that_is_not_here']"
    part = metric_cache(tmp_path, [first])
    assert main([str(part), "--split", "test", listed, *second]) == 1
    line = capsys.readouterr().err.splitlines()[-1]  # after the bars of the loader
    assert line.startswith(f"error: 1 of 2 scenes have no metric cache in {part}: {other}. Run metric caching of test ")
    whole = metric_cache(tmp_path / "whole", [first, other])
    assert main([str(whole), "--split", "test", listed, *second]) == 0


def test_a_folder_that_navsim_would_not_find_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from navsim_recogdrive.agents.check_metric_cache import main
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder

    metric_cache(tmp_path / "before", ["a", "b"])
    moved = (tmp_path / "before").rename(tmp_path / "moved")
    assert not MetricCacheFolder(moved).missing_tokens(["a", "b"]), "the reward finds them"
    assert MetricCacheFolder(moved).missing_tokens(["a", "b", "c"], as_navsim=True) == ["a", "b", "c"]
    assert main([str(tmp_path / "none"), "--split", "navtest"]) == 2
    assert f"SPLIT=navtest METRIC_CACHE_PATH={tmp_path / 'none'}" in capsys.readouterr().err


def test_a_split_of_somebodys_own_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from navsim_recogdrive.agents.check_metric_cache import main
    from navsim_recogdrive.agents.compat import NAVSIM_MAJOR

    if NAVSIM_MAJOR < 2:
        pytest.skip("NAVSIM v1.x has no second stage")
    monkeypatch.delenv("OPENSCENE_DATA_ROOT", raising=False)
    split = tmp_path / "configs" / "train_test_split"
    (split / "scene_filter").mkdir(parents=True)
    (split / "own_two_stage.yaml").write_text("defaults:\n- scene_filter: own_two_stage\ndata_split: test\n")
    (split / "scene_filter" / "own_two_stage.yaml").write_text(
        "_target_: navsim.common.dataclasses.SceneFilter\n_convert_: all\ntokens: [a]\n"
        "reactive_synthetic_initial_tokens: [s0]\n"
    )
    common = "pkg://navsim.planning.script.config.common"
    path = f"hydra.searchpath=[{common},file://{tmp_path / 'configs'}]"
    whole = metric_cache(tmp_path / "whole", ["a", "s0"])
    assert main([str(whole), "--split", "own_two_stage", path]) == 0


def test_what_cannot_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from navsim_recogdrive.agents.check_metric_cache import main

    assert main([str(metric_cache(tmp_path, ["a"])), "--split", "nowhere"]) == 2
    assert "the scenes of nowhere cannot be told" in capsys.readouterr().err
    assert main([str(tmp_path / "none"), "--split", "navtest"]) == 2
    assert f"no metric cache folder {tmp_path / 'none'}" in capsys.readouterr().err
